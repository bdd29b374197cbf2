"""IP addresses and ranges as they are written in objects, and the error for all that can't be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from kproxy_ebpf.errors import quoted
from kproxy_ebpf.kube.wire import one_line
from kproxy_ebpf.model.services import SourceRange, source_range

_V4_WITH_ZEROS = re.compile(r"[0-9]+(\.[0-9]+){3}(/[0-9]+)?")
_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")
V4_MAPPED = bytes(10) + b"\xff\xff"


class Refusal(ValueError):  # noqa: N818 (the project's word for it)
    """An object can't be read. The message is one line that names the field and the value."""


class PartialRefusal(Refusal):
    """Some of an object can't be read. `rest` is the object without it, and counts."""

    def __init__(self, reason: str, rest: Any) -> None:
        super().__init__(reason)
        self.rest = rest


def refused(where: str, value: object, why: str) -> Refusal:
    return Refusal(one_line(f"{where}: {quoted(value)} {why}"))


def packed_ip(where: str, text: str) -> bytes:
    """A packed address. IPv4 written as IPv6 (::ffff:10.0.0.1) is refused: Go and C disagree about its family."""
    try:
        address = inet_pton(AF_INET6 if ":" in text else AF_INET, without_zeros(text))
    except (OSError, ValueError):
        raise refused(where, text, "is not an IP address") from None
    if address.startswith(V4_MAPPED) and len(address) == 16:
        raise refused(where, text, "is an IPv4 address in IPv6 form")
    return address


def without_zeros(text: str) -> str:
    """An IPv4 address (or range) without leading zeros, which older clusters admit. All digits are decimal, as in
    kube-proxy (ParseIPSloppy), and never octal, as in C. Any other text is given back as it is.
    """
    return _LEADING_ZEROS.sub("", text) if _V4_WITH_ZEROS.fullmatch(text) else text


def is_special(address: bytes) -> bool:
    """Unspecified, loopback, link-local or link-local multicast: nothing that a packet may be sent on to (API:
    ValidateNonSpecialIP).
    """
    if len(address) == 4:
        return address == bytes(4) or address[0] == 127 or address[:2] == b"\xa9\xfe" or address[:3] == b"\xe0\x00\x00"
    first_two = address[0] << 8 | address[1]
    return (
        (address[:15] == bytes(15) and address[15] <= 1) or first_two & 0xFFC0 == 0xFE80 or first_two & 0xFF0F == 0xFF02
    )


def is_never_frontend(address: bytes) -> bool:
    """Special, multicast or broadcast: as a VIP such an address would take what pods say to themselves or to all."""
    is_multicast = address[0] & 0xF0 == 0xE0 if len(address) == 4 else address[0] == 0xFF
    return is_special(address) or is_multicast or address == b"\xff\xff\xff\xff"


def ordinary_ips(where: str, texts: Sequence[str]) -> tuple[bytes, ...]:
    addresses = []
    for index, text in enumerate(texts):
        address = packed_ip(f"{where}[{index}]", text)
        if is_special(address):
            raise refused(f"{where}[{index}]", text, "is unspecified, loopback or link-local")
        addresses.append(address)
    return tuple(dict.fromkeys(addresses))


def source_ranges(texts: Sequence[str]) -> tuple[SourceRange, ...]:
    """The ranges, blanks trimmed. One that can't be read refuses the whole Service: to drop the range alone could
    leave none, which would mean "open to all".
    """
    found = (cidr(f"spec.loadBalancerSourceRanges[{index}]", text.strip()) for index, text in enumerate(texts))
    return tuple(dict.fromkeys(SourceRange(*each) for each in found))


def cidr(where: str, text: str) -> tuple[bytes, int]:
    """Network and length of a CIDR, host bits ignored. Raises Refusal."""
    _, slash, bits = text.partition("/")
    try:
        if not slash or not (bits.isascii() and bits.isdigit()):
            raise refused(where, text, "is not a CIDR")
        found = source_range(without_zeros(text))
    except Refusal:
        raise
    except ValueError:
        raise refused(where, text, "is not a CIDR") from None
    return found.network, found.prefix_bits
