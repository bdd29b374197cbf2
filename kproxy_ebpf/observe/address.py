"""Addresses as the flags of the servers give them."""

from __future__ import annotations

from kproxy_ebpf.errors import UsageError


def split_address(text: str, flag: str) -> tuple[str | None, int]:
    """``host:port``, ``:port`` (every address) or ``[v6]:port`` as (host or None, port). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise UsageError(f"{flag} {text!r} is no address: write HOST:PORT, :PORT or [IPV6]:PORT")
    return host.strip("[]") or None, int(port)
