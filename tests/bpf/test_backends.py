"""Established TCP while its backend goes through its states (SEMANTICS: connections over time)."""

from __future__ import annotations

import pytest
from harness import FROM_POD, Datapath, Meanwhile, Step
from packets import BACKEND, BACKEND_B, CLIENT, VIP, reset, tcp
from steps import CLOSED, OPENED, SYN, SYN_AGAIN, received, sent

from kproxy_ebpf.contract.layouts import BackendState, Verdict

DATA = sent("PA", b"data")


def backend(**fields: int) -> Meanwhile:
    return Meanwhile(lambda dp: dp.set_backend(1, **fields))


def gone(dp: Datapath) -> None:
    """Backend 1's pod is gone; the frontend leads to backend 2."""
    dp.add_frontend(VIP, [dp.add_backend(2, BACKEND_B)])
    dp.set_backend(1, state=BackendState.GONE)


@pytest.mark.parametrize("state", [BackendState.KEEP, BackendState.LEFT, BackendState.FREE])
def test_a_connection_outlives_its_backends_place_in_the_service(datapath: Datapath, state: BackendState) -> None:
    datapath.play(*OPENED, backend(state=state), DATA, received("A"), DATA)


def test_a_connection_outlives_its_service(datapath: Datapath) -> None:
    remove = Meanwhile(lambda dp: dp.remove_frontend(VIP))
    datapath.play(*OPENED, remove, backend(state=BackendState.LEFT), DATA, received("A"))


def test_an_id_given_to_another_backend_changes_nothing_for_a_connection(datapath: Datapath) -> None:
    """The connection goes on even when the other backend is gone in turn, for the epochs differ."""
    reuse = Meanwhile(lambda dp: dp.add_backend(1, BACKEND_B, epoch=2, state=BackendState.GONE))
    datapath.play(*OPENED, reuse, DATA, received("A"))


def test_a_connection_to_a_pod_that_is_gone_is_reset(datapath: Datapath) -> None:
    segment = tcp(CLIENT, VIP, "PA", b"data", seq=101, ack=901)
    answer = Step(FROM_POD, segment, Verdict.RESET_BACKEND_GONE, reset(VIP, CLIENT, seq=901))
    datapath.play(*OPENED, Meanwhile(gone), answer, answer)


def test_after_the_reset_the_port_leads_to_another_backend(datapath: Datapath) -> None:
    datapath.play(
        *OPENED, Meanwhile(gone), Step(FROM_POD, SYN.packet, Verdict.BALANCED, tcp(CLIENT, BACKEND_B, "S", seq=100))
    )


@pytest.mark.parametrize(
    ("state", "then"),
    [(BackendState.KEEP, BACKEND), (BackendState.LEFT, BACKEND_B), (BackendState.GONE, BACKEND_B)],
)
def test_a_repeated_syn_moves_on_only_when_its_backend_has_left(datapath: Datapath, state: BackendState, then) -> None:  # type: ignore[no-untyped-def]
    datapath.play(SYN)
    datapath.add_frontend(VIP, [datapath.add_backend(2, BACKEND_B)])
    verdict = Verdict.TRANSLATED if then == BACKEND else Verdict.BALANCED
    datapath.play(backend(state=state), Step(FROM_POD, SYN.packet, verdict, tcp(CLIENT, then, "S", seq=100)))


def test_a_slot_that_leads_nowhere_drops_and_leaves_no_flow(datapath: Datapath) -> None:
    datapath.play(backend(state=BackendState.FREE), Step(FROM_POD, SYN.packet, Verdict.DROPPED_INTERNAL))
    assert datapath.flows.count() == 0


def test_a_slot_without_a_backend_drops_and_leaves_no_flow(datapath: Datapath) -> None:
    datapath.add_frontend(VIP, [0])
    datapath.play(Step(FROM_POD, SYN.packet, Verdict.DROPPED_INTERNAL))
    assert datapath.flows.count() == 0


def test_another_processors_later_second_is_no_time_out(datapath: Datapath) -> None:
    """Another processor may write a second that began after this one had read its clock."""
    datapath.play(*OPENED, Meanwhile(lambda dp: dp.age(-1)), sent("A"), received("A"), SYN_AGAIN)


def test_closed_flows_answer_late_segments(datapath: Datapath) -> None:
    datapath.play(*CLOSED, received("FA"), sent("A"))
