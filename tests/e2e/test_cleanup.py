"""How the datapath is taken away, and that it comes back."""

from __future__ import annotations

import pytest
from worlds import attached, in_worlds

from kproxy_ebpf.lab.traffic import ask

pytestmark = in_worlds("tcx", "clsact", "hybrid")


def carrying(world):
    """What is attached to the pods' links of node1."""
    links = [pod.host_link for pod in world.node.pods.values()]
    return [attached(world.node, link, hook) for link in links for hook in ("ingress", "egress")]


def test_cleanup_takes_everything_away(world):
    daemon = world.daemon
    service = world.service(world.webs)
    daemon.stop()
    assert ([], "") not in carrying(world)
    try:
        daemon.command("cleanup")
        assert set(map(str, carrying(world))) == {str(([], ""))}
        for pod in world.node.pods.values():
            assert "clsact" not in world.node.run(["tc", "qdisc", "show", "dev", pod.host_link]).stdout
        assert not daemon.bpffs.joinpath("kproxy-ebpf").exists()
        with pytest.raises(OSError, match=r"unreachable|No route"):
            ask(world.client, service.vip(4), 80)
        daemon.command("cleanup")  # nothing left to do is no error
    finally:  # the tests after this one need it
        daemon.start()
    assert ask(world.client, service.vip(4), 80).server.startswith("web")
