"""Questions to the daemon over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from explained import NAME, FakeReconciler, explainer, explanation
from prometheus_client import CollectorRegistry

from kproxy_ebpf.cli.daemon_client import NoAnswerError, UnknownServiceError, ask_explanation
from kproxy_ebpf.errors import BusyError
from kproxy_ebpf.observe import server


@asynccontextmanager
async def served(reconciler: Any) -> AsyncIterator[str]:
    """The address of a daemon's metrics server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with server.serving(server.metrics_app(CollectorRegistry(), explainer(reconciler).answer), address, "--x"):
        yield address


async def test_an_explanation_over_http() -> None:
    async with served(FakeReconciler()) as address:
        assert await asyncio.to_thread(ask_explanation, address, *NAME) == {
            **explanation(),
            "problems": explainer(FakeReconciler()).answer(*NAME)[1]["problems"],
        }
        with pytest.raises(UnknownServiceError, match="there is no Service shop/a%/b"):
            await asyncio.to_thread(ask_explanation, address, "shop", "a%/b")
    async with served(None) as address:
        with pytest.raises(BusyError, match="ask again"):
            await asyncio.to_thread(ask_explanation, address, *NAME)
    with pytest.raises(NoAnswerError, match=f"{address}.*--metrics-address"):
        await asyncio.to_thread(ask_explanation, address, *NAME)
