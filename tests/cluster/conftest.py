"""One control plane and one daemon for all the tests here. A failed test shows the end of every log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube_world import CONTROLLERS, KubeWorld, build_world

from kproxy_ebpf.lab import Lab
from kproxy_ebpf.lab.control_plane import ControlPlane

LOG_BYTES = 6000


@pytest.fixture(scope="session")
def control(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    with Lab() as lab, ControlPlane(lab.net, lab.folder / "control-plane", controllers=CONTROLLERS) as control:
        control.lab = lab
        request.session.lab = lab
        yield control


@pytest.fixture(scope="session")
def world(control: ControlPlane) -> Iterator[KubeWorld]:
    world = build_world(control.lab, control)
    yield world
    world.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    lab = getattr(item.session, "lab", None)
    if report.failed and lab is not None:
        for log in sorted(lab.folder.glob("*/*.log")):
            report.sections.append((f"log {log.relative_to(lab.folder)}", log.read_text()[-LOG_BYTES:]))
    return report
