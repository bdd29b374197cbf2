"""Which links carry our programs, and what becomes of everybody else's."""

from __future__ import annotations

from functools import partial

import pytest
from tcx import EGRESS, INGRESS, programs_at
from worlds import in_worlds

from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until

pytestmark = in_worlds("tcx", "clsact")


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def filters_of(node, link, hook):
    return node.run(["tc", "filter", "show", "dev", link, hook]).stdout


def is_equipped(node, link):
    """Both hooks of a link have programs, by either way of attaching."""
    with_tcx = all(programs_at(node, link, hook) for hook in (INGRESS, EGRESS))
    return with_tcx or all("_v6" in filters_of(node, link, hook) for hook in ("ingress", "egress"))


def is_bare(node, link):
    with_tcx = any(programs_at(node, link, hook) for hook in (INGRESS, EGRESS))
    return not with_tcx and "clsact" not in node.run(["tc", "qdisc", "show", "dev", link]).stdout


def test_a_new_pod_is_served_as_soon_as_its_link_has_programs(world, service, family):
    """Its process starts some hundred milliseconds after its link, where there is a container runtime."""
    for number in range(5):
        pod = world.node.pod(f"new{family}{number}")
        until(partial(is_equipped, world.node, pod.host_link), "the link to carry programs", seconds=2, pause=0)
        assert ask(pod, service.vip(family), 80).server.startswith("web")
        world.node.remove(pod)


def test_a_pod_that_became_a_backend_answers(world, family):
    pod = world.node.pod(f"late{family}")
    world.serve(pod)
    service = world.service([pod])
    assert ask(world.client, service.vip(family), 80).server == pod.name
    world.node.remove(pod)


def test_only_pod_links_are_touched(world):
    node = world.node
    node.ip("link add other0 type veth peer name other1", "link set other0 up", "link set other1 up")
    pod = node.pod("witness")  # its link comes later: once it is equipped, the others have been seen
    until(lambda: is_equipped(node, pod.host_link), "the witness's link to carry programs")
    assert [link for link in ("eth0", "lo", "other0", "other1", pod.host_link) if not is_bare(node, link)] == [
        pod.host_link
    ]
    node.ip("link del other0")
    node.remove(pod)


def test_filters_of_others_survive_on_our_links(world, service, family):
    node, link = world.node, world.client.host_link
    foreign = world.daemon.bpffs / "kproxy-ebpf" / "current" / "programs" / "to_pod_v4"
    bare = "clsact" not in node.run(["tc", "qdisc", "show", "dev", link]).stdout
    if bare:
        node.run(["tc", "qdisc", "add", "dev", link, "clsact"])
    command = f"tc filter add dev {link} egress prio 49000 handle 7 protocol ip bpf object-pinned {foreign}"
    node.run([*command.split()])
    try:
        world.daemon.kill()
        world.daemon.start()
        assert "pref 49000" in filters_of(node, link, "egress")
        assert ask(world.client, service.vip(family), 80).server.startswith("web")
    finally:
        node.run(["tc", "filter", "del", "dev", link, "egress", "prio", "49000"])
        if bare:
            node.run(["tc", "qdisc", "del", "dev", link, "clsact"])


def test_pins_go_with_their_link(world):
    folder = world.daemon.bpffs / "kproxy-ebpf" / "links"
    pod = world.node.pod("brief")
    prefix = f"{world.node.ifindex(pod.host_link)}-"
    until(lambda: any(pin.name.startswith(prefix) for pin in folder.iterdir()), "the link to have a pin")
    world.node.remove(pod)
    until(lambda: not any(pin.name.startswith(prefix) for pin in folder.iterdir()), "its pin to be gone")
