"""Two generations at an upgrade: packets of flows that only the one before knows are handed to its programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness import FROM_POD, TO_POD, Datapath, Step
from packets import BACKEND, CLIENT, TOO_BIG, VIP, icmp_error, tcp, udp
from steps import CLOSED, OPENED, SYN, received, sent

from kproxy_ebpf.contract.layouts import Verdict
from kproxy_ebpf.datapath.generations.generation import Generation, ensure
from kproxy_ebpf.datapath.generations.sources import Constants

OTHER = CLIENT.on(40001)
DATA = (sent("PA", b"to"), received("PA", b"fro"), sent("A"))


@pytest.fixture
def successor(in_force: Generation, bpffs: Path, small: Constants) -> Generation:
    """A generation with a flow table of its own, as it is when it is about to take over."""
    return ensure(bpffs, replace(small, flows_max=2048))


def test_a_flow_that_only_the_predecessor_knows_goes_on(datapath: Datapath, successor: Generation) -> None:
    new = Datapath(successor, datapath.family)
    successor.copy_flows()
    datapath.play(*OPENED)  # after the copy: the links have not been swapped yet
    new.play(*DATA)
    error = icmp_error(TOO_BIG, BACKEND.host, CLIENT.host, tcp(CLIENT, BACKEND, "A"), 8)
    translated = icmp_error(TOO_BIG, VIP.host, CLIENT.host, tcp(CLIENT, VIP, "A"), 8)
    new.play(Step(TO_POD, error, Verdict.ICMP_ERROR_TRANSLATED, translated))
    assert new.flow(CLIENT, VIP, FROM_POD) is None
    successor.activate()
    successor.retire_others()
    assert new.flow(CLIENT, VIP, FROM_POD) is not None
    new.play(*DATA, *CLOSED[len(OPENED) :])


def test_what_has_expired_here_hides_nothing_that_the_predecessor_knows(
    datapath: Datapath, successor: Generation
) -> None:
    """An earlier connection with the same ports was copied, and has expired since."""
    new = Datapath(successor, datapath.family)
    datapath.play(*OPENED)
    successor.copy_flows()
    new.age(432001)
    error = icmp_error(TOO_BIG, BACKEND.host, CLIENT.host, tcp(CLIENT, BACKEND, "A"), 8)
    translated = icmp_error(TOO_BIG, VIP.host, CLIENT.host, tcp(CLIENT, VIP, "A"), 8)
    new.play(*DATA, Step(TO_POD, error, Verdict.ICMP_ERROR_TRANSLATED, translated))


def test_new_connections_are_the_successors(datapath: Datapath, successor: Generation) -> None:
    new = Datapath(successor, datapath.family)
    successor.copy_flows()
    new.play(*OPENED, *DATA, Step(FROM_POD, udp(OTHER, VIP), Verdict.BALANCED, udp(OTHER, BACKEND)))
    assert list(datapath.flows.keys()) == []
    assert new.flow(OTHER, VIP, FROM_POD, "udp") is not None


def test_what_nobody_knows_is_left_to_the_host(datapath: Datapath, successor: Generation) -> None:
    new = Datapath(successor, datapath.family)
    successor.copy_flows()
    new.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.MIDSTREAM),
        Step(TO_POD, tcp(BACKEND, CLIENT, "A"), Verdict.UNTOUCHED),
    )


def test_without_a_predecessor_such_a_flow_is_in_midstream(datapath: Datapath, successor: Generation) -> None:
    """The reason why packets of unknown flows are handed to the predecessor."""
    datapath.play(*OPENED)
    Datapath(successor, datapath.family).play(Step(FROM_POD, DATA[0].packet, Verdict.MIDSTREAM))


def test_a_flow_that_was_copied_needs_no_predecessor(datapath: Datapath, successor: Generation) -> None:
    datapath.play(SYN, *OPENED[1:], Step(FROM_POD, udp(OTHER, VIP), Verdict.BALANCED, udp(OTHER, BACKEND)))
    successor.copy_flows()
    datapath.clear_flows()
    again = Step(FROM_POD, udp(OTHER, VIP), Verdict.TRANSLATED, udp(OTHER, BACKEND))
    Datapath(successor, datapath.family).play(*DATA, again)
