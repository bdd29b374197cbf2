"""Fixtures that all modules share. A failed test shows its daemons' logs."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from sockets import FORMS
from versions import compiled_version
from worlds import TCP_PORT, UDP_PORT, VARIANTS, World, running_world
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from kproxy_ebpf.model.services import Protocol

LOG_BYTES = 6000

# Both ends of all connections are in this process: a thousand of them are more than the usual soft limit.
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


BUSY_MODULES = ("test_rolling_updates", "test_upgrade")
"""Their tests keep a processor busy for minutes. They come first, and one process runs them all, one by one."""


class WorldScheduling(LoadScopeScheduling):
    """Which process runs which tests: those of one world stay together in one, which makes the world once."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        module, parameters = Path(file).stem, f"-{test.partition('[')[2].rstrip(']')}-"
        if module in BUSY_MODULES:
            return "busy"
        return max((name for name in VARIANTS if f"-{name}-" in parameters), key=len, default=module)


@pytest.hookimpl(trylast=True)  # after the tests of one world have been put side by side
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in BUSY_MODULES)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return WorldScheduling(config, log)


@pytest.fixture(scope="session", params=["tcx"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Shared by all modules, since a start compiles for seconds. A module names the variants that it wants:
    `in_worlds("tcx", "clsact")`; one that breaks its world makes its own with `running_world`.
    """
    with running_world(**VARIANTS[request.param]) as world:
        yield world


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=[Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


@pytest.fixture
def port(protocol: Protocol) -> int:
    """The Service port of `protocol` in DEFAULT_PORTS."""
    return {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}[protocol]


@pytest.fixture(params=FORMS)
def form(request):
    """How the application writes addresses."""
    return request.param


@pytest.fixture
def upgrade(world, request, tmp_path):
    """Starts the daemon of another version, or with other flags; called again, the first one. It is left running."""
    daemon, change = world.daemon, getattr(request, "param", {})
    first = daemon.flags, daemon.environment
    other = daemon.flags + change.get("flags", []), daemon.environment  # the last flag of a name counts
    if edits := change.get("edits"):
        other = other[0], {"PYTHONPATH": str(compiled_version(tmp_path / "version", edits))}
    versions = [first, other]

    def start_next():
        versions.append(versions.pop(0))
        daemon.stop()
        daemon.flags, daemon.environment = versions[0]
        daemon.start()

    yield start_next
    if daemon.process is None or (daemon.flags, daemon.environment) != first:
        daemon.flags, daemon.environment = first
        if daemon.process is not None:
            daemon.stop()
        daemon.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    world = item.funcargs.get("world") if isinstance(item, pytest.Function) else None
    if report.failed and world is not None:
        for daemon in world.daemons:
            report.sections.append((f"log of {daemon.node.name}", daemon.log()[-LOG_BYTES:]))
    return report
