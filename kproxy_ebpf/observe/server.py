"""The two HTTP servers: /healthz and /livez for kubelet and load balancers, /metrics for Prometheus and /explain for
the commands.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.observe.address import split_address
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

NOSNIFF = {"X-Content-Type-Options": "nosniff"}

Explain = Callable[[str, str], tuple[int, dict[str, Any]]]
"""From a Service's namespace and name to HTTP status and JSON body."""


def health_app(health: Health, metrics: Metrics) -> web.Application:
    """Serves /healthz and /livez."""

    def handler(answer: Callable[[], tuple[int, dict[str, Any]]], counter: Counter) -> Any:
        async def handle(_: web.Request) -> web.Response:
            status, body = answer()
            counter.labels(code=str(status)).inc()
            # As bytes: kube-proxy's Content-Type names no charset.
            content = json.dumps(body).encode()
            return web.Response(body=content, status=status, content_type="application/json", headers=NOSNIFF)

        return handle

    app = web.Application()
    app.router.add_get("/healthz", handler(health.healthz, metrics.healthz))
    app.router.add_get("/livez", handler(health.livez, metrics.livez))
    return app


def metrics_app(registry: CollectorRegistry, explain: Explain | None = None) -> web.Application:
    """Serves /metrics, and with `explain` /explain/NAMESPACE/NAME to clients on this machine.

    Reading the maps may take a while with many flows, so it is done in a thread.
    """

    async def handle(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST, **NOSNIFF})

    app = web.Application()
    app.router.add_get("/metrics", handle)
    if explain is not None:
        app.router.add_get("/explain/{namespace}/{name}", _explaining(explain))
    return app


def _explaining(explain: Explain) -> Any:
    async def handle(request: web.Request) -> web.Response:
        transport = request.transport
        ends = [transport.get_extra_info(end) for end in ("peername", "sockname")] if transport else []
        if not is_from_here(*(end[0] for end in ends if end)):
            return web.Response(status=403, text="only for clients on this machine\n", headers=NOSNIFF)
        status, body = explain(request.match_info["namespace"], request.match_info["name"])
        return web.json_response(body, status=status, headers=NOSNIFF)

    return handle


def is_from_here(peer: str = "", own: str = "") -> bool:
    """True if a connection comes from this machine: over loopback, or with one address at both ends. Metrics are often
    served to the whole cluster, and not everybody who reads them may know every Service.
    """
    try:
        return ip_address(peer).is_loopback or peer == own
    except ValueError:
        return False


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
