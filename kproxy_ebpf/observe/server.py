"""The two HTTP servers: /healthz and /livez for kubelet and load balancers, /metrics for Prometheus."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

NOSNIFF = {"X-Content-Type-Options": "nosniff"}


def split_address(text: str, flag: str) -> tuple[str | None, int]:
    """``host:port``, ``:port`` (every address) or ``[v6]:port`` as (host or None, port). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise UsageError(f"{flag} {text!r} is no address: write HOST:PORT, :PORT or [IPV6]:PORT")
    return host.strip("[]") or None, int(port)


def health_app(health: Health, metrics: Metrics) -> web.Application:
    """Serves /healthz and /livez."""

    def handler(answer: Callable[[], tuple[int, dict[str, Any]]], counter: Counter) -> Any:
        async def handle(_: web.Request) -> web.Response:
            status, body = answer()
            counter.labels(code=str(status)).inc()
            return web.json_response(body, status=status, headers=NOSNIFF)

        return handle

    app = web.Application()
    app.router.add_get("/healthz", handler(health.healthz, metrics.healthz))
    app.router.add_get("/livez", handler(health.livez, metrics.livez))
    return app


def metrics_app(registry: CollectorRegistry) -> web.Application:
    """Serves /metrics. Reading the maps may take a while with many flows, so it is done in a thread."""

    async def handle(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST, **NOSNIFF})

    app = web.Application()
    app.router.add_get("/metrics", handle)
    return app


@asynccontextmanager
async def serving(app: web.Application, address: str, flag: str) -> AsyncIterator[None]:
    """Serve `app` on `address` inside the block. Raises BusyError that names the address and the flag."""
    host, port = split_address(address, flag)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise _refusal(error, address, flag) from None
        yield
    finally:
        await runner.cleanup()


def _refusal(error: OSError, address: str, flag: str) -> BusyError | UsageError:
    if error.errno == errno.EADDRINUSE:
        return BusyError(f"address {address} is in use by another program: free it, or choose another one with {flag}")
    return UsageError(f"can't listen on {address} ({error.strerror or error}): choose another address with {flag}")
