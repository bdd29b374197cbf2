"""Pods that real plugins wire, with ours at the end of the chain."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tcx import EGRESS, INGRESS, programs_at
from worlds import World, running_world

from kproxy_ebpf.lab.cni import CniPod, PluginError, Runtime, ipam
from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.observe.state import cni_socket

AWAY = 11
OWN = "kproxy-ebpf-cni"


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def world(request):
    with running_world(attach=request.param, mode="tc") as made:
        yield made


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def runtime(world: World, kind: str, version: str = "1.0.0") -> Runtime:
    """A list whose first plugin is `kind`, and whose last is ours."""
    node, folder = world.node, world.lab.folder / "leases"
    first = {"ptp": {}, "bridge": {"bridge": "pods0", "isGateway": True}}[kind]
    numbers = {"ptp": (100, 149), "bridge": (150, 199)}[kind]
    plugins = [
        {"type": kind, **first, "ipam": ipam(node, folder, *numbers)},
        {"type": OWN, "socket": str(cni_socket(world.daemon.bpffs))},
    ]
    return Runtime(node, {"cniVersion": version, "name": f"pods-{kind}", "plugins": plugins})


@pytest.fixture(params=["ptp", "bridge"])
def cni(world, request):
    return runtime(world, request.param)


@pytest.fixture
def pod(world, request):
    made = CniPod(world.node, "cni")
    yield made
    made.remove()


def host_link(result) -> str:
    return next(entry["name"] for entry in result["interfaces"] if entry["name"].startswith("veth"))


def is_equipped(node, link) -> bool:
    by_tcx = all(programs_at(node, link, hook) for hook in (INGRESS, EGRESS))
    filters = [node.run(["tc", "filter", "show", "dev", link, hook]).stdout for hook in ("ingress", "egress")]
    return by_tcx or all("_v4" in shown and "_v6" in shown for shown in filters)


def test_programs_are_in_place_when_add_returns(world, service, cni, family):
    for number in range(5):
        pod = CniPod(world.node, f"cni{number}")
        result = cni.add(pod)
        assert is_equipped(world.node, host_link(result))
        assert ask(pod, service.vip(family), 80).server.startswith("web")
        cni.check(pod)
        cni.delete(pod)
        pod.remove()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_the_result_is_handed_on_byte_for_byte(world, pod, version):
    cni = runtime(world, "ptp", version)
    first, own = cni.conflist["plugins"]
    result = cni.call("ADD", first, pod)
    result = result.replace('"ips"', '"unknown": {"n": 1e3, "t": "\\u00e4 "}, "ips"')
    assert cni.call("ADD", own, pod, result=result) == result
    assert cni.call("ADD", own, pod, result=result) == result, "asked twice, it answers twice"
    if version != "0.3.1":  # which has no CHECK
        assert cni.call("CHECK", own, pod, result=result) == ""
    assert json.loads(cni.call("VERSION", own, None))["cniVersion"] == version
    cni.call("DEL", own, pod, result=result)
    cni.call("DEL", first, pod)


def test_the_latest_version(world, pod):
    """Debian's plugins don't know it: theirs is the result, ours the list."""
    first, own = runtime(world, "ptp").conflist["plugins"]
    older, latest = runtime(world, "ptp"), runtime(world, "ptp", "1.1.0")
    result = older.call("ADD", first, pod).replace('"1.0.0"', '"1.1.0"')
    assert latest.call("ADD", own, pod, result=result) == result
    assert is_equipped(world.node, host_link(json.loads(result)))
    silent = [latest.call(command, own, pod, result=result) for command in ("CHECK", "DEL")]
    silent += [latest.call(command, own, None) for command in ("STATUS", "GC")]
    assert silent == [""] * 4
    older.call("DEL", first, pod)


def test_an_add_waits_for_a_daemon_that_is_replaced(world, service, cni, pod, family):
    world.daemon.kill()
    with ThreadPoolExecutor(1) as thread:
        adding = thread.submit(cni.add, pod)
        world.daemon.launch()
        result = adding.result()
    assert is_equipped(world.node, host_link(result))
    assert ask(pod, service.vip(family), 80).server.startswith("web")
    world.daemon.wait_ready()
    cni.check(pod)
    cni.delete(pod)


def test_a_daemon_that_dies_with_a_request_is_asked_again(world, pod):
    """It is stopped when the request comes, and killed before it can read it."""
    cni = runtime(world, "ptp")
    process = world.daemon.process
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        adding = thread.submit(cni.add, pod)
        time.sleep(0.5)
        assert not adding.done(), "no answer before the programs are there"
        world.daemon.kill()
        world.daemon.launch()
        assert is_equipped(world.node, host_link(adding.result()))
    world.daemon.wait_ready()
    cni.delete(pod)


def test_without_a_daemon_add_says_try_again_and_delete_succeeds(world, pod):
    cni = runtime(world, "ptp")
    own = cni.conflist["plugins"][1]
    world.daemon.kill()
    try:
        with pytest.raises(PluginError, match="does not run") as caught:
            cni.add(pod)
        assert caught.value.code == AWAY
        with pytest.raises(PluginError) as caught:
            cni.call("STATUS", own, None)
        assert caught.value.code == 50
        cni.delete(pod)
        cni.delete(pod)
        cni.call("GC", own, None)
        assert json.loads(cni.call("VERSION", own, None))["supportedVersions"][-1] == "1.1.0"
    finally:
        world.daemon.start()
    cni.add(pod)
    cni.call("STATUS", own, None)
    cni.delete(pod)


def test_check_tells_of_programs_that_somebody_took_off(world, pod):
    cni = runtime(world, "ptp")
    own, node = cni.conflist["plugins"][1], world.node
    link = host_link(cni.add(pod))
    for pin in (world.daemon.bpffs / "kproxy-ebpf/links").glob(f"{node.ifindex(link)}-*_v*"):
        pin.unlink()
    node.run(["tc", "qdisc", "del", "dev", link, "clsact"], check=False)  # there is none where TCX is in use
    until(lambda: not is_equipped(node, link), "the programs to be off the link")
    with pytest.raises(PluginError, match="has lost its programs") as caught:
        cni.check(pod)
    assert caught.value.code == 101
    cni.call("ADD", own, pod, result='{"cniVersion": "1.0.0", "interfaces": []}')
    assert is_equipped(node, link)
    cni.delete(pod)


def test_a_namespace_that_is_gone(world, pod):
    cni = runtime(world, "ptp")
    own = cni.conflist["plugins"][1]
    cni.add(pod)
    gone = CniPod(world.node, "gone")
    gone.remove()
    with pytest.raises(PluginError, match="can't be opened") as caught:
        cni.call("ADD", own, gone, result='{"cniVersion": "1.0.0"}')
    assert caught.value.code == 3
    cni.call("DEL", own, gone)
    cni.delete(pod)


def test_links_leave_nothing_behind(world):
    folder = world.daemon.bpffs / "kproxy-ebpf/links"
    before = set(folder.iterdir())
    pod = CniPod(world.node, "brief")
    cni = runtime(world, "ptp")
    cni.add(pod)
    assert set(folder.iterdir()) > before
    pod.remove()  # and nobody calls DEL
    until(lambda: set(folder.iterdir()) == before, "the pins to be gone")
    cni.delete(pod)
