"""What a daemon can't do it says, with the exit code or the signal that fits: full tables, busy ports, no root."""

from __future__ import annotations

import os
import re
import socket

import pytest
from worlds import running_world

from kproxy_ebpf.lab.traffic import ask, await_answer, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

HTTP = {"http": (80, "TCP", 8080)}


@pytest.fixture(scope="module")
def world():
    """A small one."""
    with running_world(flags=("--max-frontends", "8", "--max-flows", "2048", "--sync-period", "1"), mode="tc") as world:
        yield world


def test_a_flow_table_without_room_is_named_and_established_flows_go_on(world):
    """2,048 entries are 1,024 connections. An LRU evicts those used longest ago, never one in use."""
    service = world.service(world.webs, HTTP)
    with opened(world.client, service.vip(4), 80) as early:
        read_answer(early, 0)
        for _ in range(1200):
            ask(world.client, service.vip(4), 80)
            echo(early, b"still here")
        until(
            lambda: "flows_v4" in str(world.daemon.healthz()[1].get("problems")),
            "/healthz to name the table",
            seconds=20,
        )
    assert "--max-flows" in world.daemon.log()
    service.remove()


def test_a_full_table_is_named_and_what_fits_works(world):
    """A Service with one port takes two of the eight frontends of a family: its port and its address."""
    daemon = world.daemon
    fitting = [world.service(world.webs, HTTP) for _ in range(4)]
    too_many = world.service(world.webs, HTTP, wait=False)

    def full():
        return sum(value for name, value in daemon.metrics().items() if name.startswith("kproxy_ebpf_table_full_total"))

    until(full, "the metric to count it")
    assert "frontends_v4" in daemon.log()
    status, body = daemon.healthz()
    assert "frontends_v4" in str(body), status
    for service in fitting:
        assert ask(world.client, service.vip(4), 80)
    with pytest.raises(OSError, match=r"unreachable|No route"):
        ask(world.client, too_many.vip(4), 80)
    fitting[0].remove()
    await_answer(world.client, too_many.vip(4), 80, what="the one too many to get its room")


def refusal_of(world, flags, *, wrapper=(), environment=None):
    """What a daemon with these flags says before it ends, and its exit code."""
    arguments = [*wrapper, *world.daemon.arguments(), *flags]
    done = world.node.run(arguments, check=False, env=environment)
    said = done.stderr + done.stdout
    assert "Traceback" not in said
    return done.returncode, said


@pytest.fixture
def other_bpffs(world):
    """A place for pins that no other daemon holds."""
    folder = world.lab.folder / "other"
    folder.mkdir(exist_ok=True)
    return ["--bpffs", str(folder)]


@pytest.fixture
def elsewhere(other_bpffs):
    """The same, and addresses that no other daemon listens on."""
    return [*other_bpffs, "--health-address", "127.0.0.1:21356", "--metrics-address", "127.0.0.1:21349"]


def test_a_busy_health_port_is_named(world, other_bpffs):
    with world.node.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.bind(("127.0.0.1", 21356))
        holder.listen()
        code, said = refusal_of(world, [*other_bpffs, "--health-address", "127.0.0.1:21356"])
    assert code == os.EX_TEMPFAIL, said
    assert "127.0.0.1:21356" in said
    assert "--health-address" in said


def test_without_root_it_says_so(world):
    unprivileged = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"]
    done = world.node.run([*unprivileged, *world.daemon.arguments()], check=False)
    assert done.returncode == os.EX_NOPERM, done.stderr
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manifests_folder_that_is_not_there_is_named(world, elsewhere):
    code, said = refusal_of(world, [*elsewhere, "--manifests", "/nowhere/at/all"])
    assert code == os.EX_NOINPUT, said
    assert "/nowhere/at/all" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("clusters: [", "not YAML"), ("kind: Config", "current-context")],
    ids=["absent", "no YAML", "no context"],
)
def test_a_kubeconfig_that_can_not_be_read_is_named(world, elsewhere, tmp_path, content, words):
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    arguments = world.daemon.arguments()
    at = arguments.index("--manifests")
    arguments[at : at + 2] = ["--kubeconfig", str(path)]
    done = world.node.run([*arguments, *elsewhere], check=False)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == os.EX_NOINPUT, done.stderr
    assert str(path) in said
    assert words in said


def test_without_kernel_headers_it_says_what_to_install(world, elsewhere, tmp_path):
    """Where no compiled programs are kept: else nothing is missing."""
    environment = os.environ | {"BCC_KERNEL_SOURCE": "/nowhere/at/all", "KPROXY_CACHE_DIR": str(tmp_path / "empty")}
    code, said = refusal_of(world, elsewhere, environment=environment)
    assert code == os.EX_OSERR, said
    assert "headers" in said


def test_an_old_kernel_is_named(world, elsewhere):
    code, said = refusal_of(world, elsewhere, wrapper=["setarch", "--uname-2.6"])
    assert code == os.EX_OSERR, said
    assert re.search(r"Linux 2\.6\S* is too old: 5\.10 or later is needed", said)


def test_a_place_where_bpffs_can_not_be_mounted_is_named(world, elsewhere):
    code, said = refusal_of(world, [*elsewhere, "--bpffs", "/etc/hostname/bpffs"])
    assert code == os.EX_OSERR, said
    assert "bpffs" in said
    assert "/etc/hostname/bpffs" in said


def test_a_bad_setting_keeps_the_last_good_ones_and_is_named(world):
    daemon = world.daemon
    daemon.settings({"mode": "sideways"})
    until(lambda: "sideways" in str(daemon.healthz()[1]), "/healthz to name the bad value")
    assert "hybrid" in daemon.log()
    daemon.settings({"mode": "tc"})
    until(lambda: "sideways" not in str(daemon.healthz()[1]), "/healthz to forget it")
