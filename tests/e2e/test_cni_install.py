"""The plugin in a node's list: put in by a setting, kept there, taken out; and pods by the list as it stands there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from worlds import running_world

from kproxy_ebpf.cni.conflist import PLUGIN
from kproxy_ebpf.lab.cni import PLUGINS, CniPod, Runtime, ipam
from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The node's folder of lists, and of plugins."""
    conf, programs = tmp_path_factory.mktemp("net.d"), tmp_path_factory.mktemp("bin")
    return conf, programs


@pytest.fixture(scope="module")
def world(folders):
    with running_world(mode="tc") as made:
        conf, programs = folders
        daemon = made.daemon
        daemon.stop()
        daemon.flags += ["--cni-conf-dir", str(conf), "--cni-bin-dir", str(programs)]
        daemon.start()
        yield made


@pytest.fixture
def wired(world, folders):
    """The list of another agent, which wires pods; its text."""
    plugin = {"type": "ptp", "ipam": ipam(world.node, world.lab.folder / "leases", 100, 149)}
    text = json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}, indent=2)
    path = folders[0] / "10-pods.conflist"
    path.write_text(text)
    yield path
    world.switch(cni="none")
    until(lambda: PLUGIN not in path.read_text(), "the plugin to be out of the list")
    path.unlink()


def in_list(path: Path) -> bool:
    return PLUGIN in path.read_text()


def problems(world) -> str:
    return " ".join(world.daemon.healthz()[1]["problems"].values())


def checked(world, folders) -> str:
    flags = ["--cni-conf-dir", str(folders[0]), "--cni-bin-dir", str(folders[1])]
    return next(line for line in world.daemon.command("check", *flags).stdout.splitlines() if " cni " in line)


def told(world) -> str:
    return next((line for line in world.daemon.command("status").stdout.splitlines() if line.startswith("cni ")), "")


def test_from_installation_to_cleanup(world, folders, wired):
    conf, programs = folders
    before, service = wired.read_text(), world.service(world.webs)
    assert "is not in" in checked(world, folders)
    world.switch(cni="chain")
    until(lambda: "install-cni" in problems(world), "the lack of a program to be told")
    assert not in_list(wired), "no pod could start"
    assert "put into" in world.node.run([world.daemon.arguments()[0], "install-cni", "--cni-bin-dir", programs]).stdout
    until(lambda: in_list(wired), "the plugin to be in the list")
    until(lambda: f"{PLUGIN} is in {wired}" in told(world), "status to tell of it")
    assert checked(world, folders).startswith("ok")
    assert problems(world) == ""

    pod = CniPod(world.node, "cni")
    runtime = Runtime(world.node, json.loads(wired.read_text()), [PLUGINS[0], programs])
    runtime.add(pod)
    for family in (4, 6):
        assert ask(pod, service.vip(family), 80).server.startswith("web")
    wired.write_text(before)  # in place, as some agents do
    until(lambda: in_list(wired), "the plugin to be in the list again")
    (beside := conf / "agents-new-file").write_text(before)
    beside.replace(wired)
    until(lambda: in_list(wired), "the plugin to be in the list again")

    world.daemon.kill()
    try:
        assert in_list(wired), "pods wait for the next daemon"
        said = world.daemon.command("cleanup", "--cni-conf-dir", str(conf)).stdout
        assert f"taken out of {wired}" in said
        assert wired.read_text() == before
        runtime.delete(pod)  # by the list with which it was added
        pod.remove()
    finally:
        world.daemon.start()
    until(lambda: in_list(wired), "the plugin to be in the list again")


def test_none_takes_it_out_while_the_daemon_runs(world, folders, wired):
    (folders[1] / PLUGIN).write_bytes((PLUGINS[1] / PLUGIN).read_bytes())
    (folders[1] / PLUGIN).chmod(0o755)
    before = wired.read_text()
    world.switch(cni="chain")
    until(lambda: in_list(wired), "the plugin to be in the list")
    world.switch(cni="none")
    until(lambda: wired.read_text() == before, "the plugin to be out of the list")
    until(lambda: told(world) == "", "status to tell of it")


def test_it_leaves_a_list_that_was_left_by_a_daemon_before(world, wired):
    before = wired.read_text()
    world.switch(cni="chain")
    until(lambda: in_list(wired), "the plugin to be in the list")
    world.daemon.kill()
    world.switch(cni="none")
    world.daemon.start()
    until(lambda: wired.read_text() == before, "the plugin to be out of the list")


def test_a_single_plugin_is_told_and_left_alone(world, folders, wired):
    single = folders[0] / "05-single.conf"
    single.write_text('{"cniVersion": "1.0.0", "name": "x", "type": "ptp"}')
    before = single.read_text()
    world.switch(cni="chain")
    try:
        until(lambda: "05-single.conf: it is a single plugin" in problems(world), "it to be told")
        assert not in_list(wired), "the node does not use that list"
        assert single.read_text() == before
        assert "single plugin" in checked(world, folders)
    finally:
        single.unlink()
    until(lambda: in_list(wired) and not problems(world), "the plugin to be in the list")
