"""Attachment to real links, in a network namespace of its own, by both methods."""

from __future__ import annotations

from pathlib import Path
from socket import if_nametoindex

import pytest
from links import METHODS, filters, ip, pins, tc

from kproxy_ebpf.datapath.attach.tc import AT_UPLINKS, Attacher, Method
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.linux.bpf import Link

PROGRAMS = ("from_pod_v4", "from_pod_v6", "to_pod_v4", "to_pod_v6")


def test_attach_and_detach(attacher: Attacher, generation: Generation, veth: int) -> None:
    method = attacher.attach(veth)
    assert attacher.attached() == {veth: method}
    if method is Method.TCX:
        assert pins(generation, veth) == list(PROGRAMS)
        assert filters() == []
        with Link.open(generation.root / "links" / f"{veth}-to_pod_v6") as link, generation.program("to_pod", 6) as p:
            assert (link.info.ifindex, link.info.attach_type, link.info.program_id) == (veth, 47, p.id)
    else:
        assert sorted(filters()) == [f"kproxy-ebpf/{name}" for name in PROGRAMS]
    attacher.attach(veth)
    assert attacher.attached() == {veth: method}, "attaching twice is attaching once"
    assert len(filters()) == (4 if method is Method.CLSACT else 0)
    attacher.detach(veth)
    assert attacher.attached() == {}
    assert filters() == []
    assert "clsact" not in tc("qdisc", "show", "dev", "veth0")
    attacher.detach(veth)


def test_auto_prefers_tcx(generation: Generation, veth: int) -> None:
    with Attacher(generation) as attacher:
        assert attacher.attach(veth) is Method.TCX
        attacher.detach(veth)


def test_changing_the_method_leaves_one(generation: Generation, veth: int) -> None:
    for method in (Method.TCX, Method.CLSACT, Method.TCX):
        with Attacher(generation, method) as attacher:
            attacher.attach(veth)
            assert attacher.attached() == {veth: method}
            assert bool(filters()) == (method is Method.CLSACT)
    with Attacher(generation) as attacher:
        attacher.detach(veth)
        assert attacher.attached() == {}


def test_other_peoples_filters_stay(attacher: Attacher, veth: int) -> None:
    tc("qdisc", "add", "dev", "veth0", "clsact")
    tc("filter", "add", "dev", "veth0", "ingress", "prio", "50", "protocol", "ip", "bpf", "da", *_foreign(attacher))
    attacher.attach(veth)
    attacher.detach(veth)
    assert filters() == []
    assert "foreign" in tc("filter", "show", "dev", "veth0", "ingress")
    assert "clsact" in tc("qdisc", "show", "dev", "veth0"), "not ours"


def test_our_qdisc_stays_for_other_peoples_filters(generation: Generation, veth: int) -> None:
    with Attacher(generation, Method.CLSACT) as attacher:
        attacher.attach(veth)
        tc("filter", "add", "dev", "veth0", "egress", "prio", "7", "protocol", "all", "bpf", "da", *_foreign(attacher))
        attacher.detach(veth)
    assert "foreign" in tc("filter", "show", "dev", "veth0", "egress")
    assert filters() == []
    assert pins(generation, veth) == []


def test_another_process_adopts_what_is_attached(attacher: Attacher, generation: Generation, veth: int) -> None:
    method = attacher.attach(veth)
    with Attacher(generation, method) as again:
        assert again.attached() == {veth: method}
        again.attach(veth)
        assert pins(generation, veth) == (list(PROGRAMS) if method is Method.TCX else ["clsact"])
        again.detach(veth)
    assert "clsact" not in tc("qdisc", "show", "dev", "veth0"), "that we made the qdisc is remembered"


def test_swap(attacher: Attacher, generation: Generation, veth: int, tmp_path: Path) -> None:
    ip("link add veth1 type veth peer name peer1")
    second = if_nametoindex("veth1")
    for ifindex in (veth, second):
        attacher.attach(ifindex)
    with generation.program("to_pod", 4) as one, generation.program("reject", 4) as other:
        before = {one.id}
        after = {other.id}
        assert _program_ids("to_pod_v4", "veth0", generation) == before
        attacher.swap(Swapped(generation.path))
        for device in ("veth0", "veth1"):
            assert _program_ids("to_pod_v4", device, generation) == after
        attacher.swap(generation)
        assert _program_ids("to_pod_v4", "veth1", generation) == before


class Swapped(Generation):
    """A generation whose programs are others than those of the one that is its base."""

    def program(self, name: str, family: int):  # type: ignore[no-untyped-def]
        return super().program({"to_pod": "reject"}.get(name, name), family)


def test_a_link_that_is_gone(attacher: Attacher, generation: Generation, veth: int) -> None:
    attacher.attach(veth)
    ip("link del veth0")
    attacher.prune()
    assert pins(generation, veth) == []
    assert attacher.attached() == {}
    attacher.detach(veth)
    with pytest.raises(OSError, match=r"No such device"):
        attacher.attach(veth)


def _foreign(attacher: Attacher) -> tuple[str, ...]:
    """tc's words for a filter of somebody else's, with any program."""
    path = attacher._links.parent / "foreign"
    if not path.exists():
        next(iter(attacher._programs.values())).pin(path)
    return "object-pinned", str(path)


def _program_ids(name: str, device: str, generation: Generation) -> set[int]:
    """The programs that `device` runs under this name of ours, by either method."""
    pin = generation.root / "links" / f"{if_nametoindex(device)}-{name}"
    if pin.exists():
        with Link.open(pin) as link:
            return {link.info.program_id}
    words = tc("filter", "show", "dev", device, "egress" if name.startswith("to_pod") else "ingress").splitlines()
    lines = [line for line in words if f"kproxy-ebpf/{name} " in line]
    return {int(line.split(" id ")[1].split()[0]) for line in lines}


@pytest.mark.parametrize("method", METHODS)
def test_an_uplink_has_programs_of_its_own(generation: Generation, veth: int, method: Method) -> None:
    """Each kind of link is another attacher's: neither touches what is the other's."""
    ip("link add uplink0 type veth peer name wire0")
    uplink = if_nametoindex("uplink0")
    with Attacher(generation, method) as pods, Attacher(generation, method, AT_UPLINKS) as uplinks:
        pods.attach(veth)
        uplinks.attach(uplink)
        assert (pods.attached(), uplinks.attached()) == ({veth: method}, {uplink: method})
        hooks = {hook: tc("filter", "show", "dev", "uplink0", hook) for hook in ("ingress", "egress")}
        if method is Method.CLSACT:
            assert ("from_uplink_v6" in hooks["ingress"], "to_uplink_v6" in hooks["egress"]) == (True, True)
        else:
            assert pins(generation, uplink) == sorted(f"{name}_v{family}" for name in AT_UPLINKS for family in (4, 6))
        pods.detach(uplink)
        assert uplinks.attached() == {uplink: method}
        uplinks.detach(veth)
        assert pods.attached() == {veth: method}
        pods.detach(veth)
        uplinks.detach(uplink)
        assert (pods.attached(), uplinks.attached()) == ({}, {})
