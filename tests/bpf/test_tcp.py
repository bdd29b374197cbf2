"""A TCP connection's life through a VIP, packet by packet."""

from __future__ import annotations

import pytest
from harness import FROM_POD, TO_POD, Datapath, Meanwhile, Step
from packets import BACKEND, BACKEND_B, CLIENT, OUTSIDE, VIP, Between, longest, router_alert, tcp
from steps import CLOSED, OPENED, SYN, SYN_ACK, SYN_AGAIN, received, sent

from kproxy_ebpf.contract.layouts import BackendState, FlowFlags, FlowState, Verdict


def test_a_life(datapath: Datapath) -> None:
    datapath.play(
        *OPENED,
        sent("PA", b"GET / HTTP/1.1\r\n\r\n"),
        received("A"),
        received("PA", b"odd"),  # an odd number of bytes: the checksum pads one
        sent("A"),
        received("FA"),
        sent("A"),
        sent("FA"),
        received("A"),
    )


def test_what_the_flow_remembers(datapath: Datapath) -> None:
    states = []

    def look(dp: Datapath) -> None:
        forward, reply = dp.flow(CLIENT, VIP, FROM_POD), dp.flow(BACKEND, CLIENT, TO_POD)
        assert forward.state == reply.state
        assert forward.flags ^ reply.flags == FlowFlags.REPLY
        states.append(FlowState(forward.state))

    steps = (SYN, SYN_AGAIN, SYN_ACK, sent("A"), sent("FA"), sent("FA"), received("FA"), sent("A"))
    datapath.play(*(part for step in steps for part in (step, Meanwhile(look))))
    new, established, closing, closed = FlowState
    assert states == [new, new, established, established, closing, closing, closed, closed]


@pytest.mark.parametrize("rst", [sent("R"), received("R"), received("RA")])
def test_a_reset_closes(datapath: Datapath, rst: Step) -> None:
    datapath.play(*OPENED, rst)
    assert datapath.flow(CLIENT, VIP, FROM_POD).state == FlowState.CLOSED
    assert datapath.flow(BACKEND, CLIENT, TO_POD).state == FlowState.CLOSED


def test_a_repeated_syn_keeps_its_backend(empty: Datapath) -> None:
    """There are two backends, chosen at random: 16 tries would show a retransmission that chooses anew."""
    empty.add_frontend(VIP, [empty.add_backend(1, BACKEND), empty.add_backend(2, BACKEND_B)])
    for port in range(40000, 40016):
        packet = tcp(CLIENT.on(port), VIP, "S").frame(empty.family)
        first = empty.run(FROM_POD, packet).data
        assert empty.see(FROM_POD, packet)[0] == Verdict.TRANSLATED
        assert empty.run(FROM_POD, packet).data == first


def test_a_closed_flow_gives_its_port_to_a_new_connection(datapath: Datapath) -> None:
    datapath.add_backend(2, BACKEND_B)

    def move(dp: Datapath) -> None:
        dp.add_frontend(VIP, [2])

    again = Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.BALANCED, tcp(CLIENT, BACKEND_B, "S"))
    answer = Step(TO_POD, tcp(BACKEND_B, CLIENT, "SA"), Verdict.REVERSED, tcp(VIP, CLIENT, "SA"))
    datapath.play(*CLOSED, Meanwhile(move), again, answer)


def test_what_is_left_of_a_closed_flow_does_not_disturb_the_next(datapath: Datapath) -> None:
    """A late FIN of the old backend finds its own old entry, and leaves the new connection's state alone."""
    test_a_closed_flow_gives_its_port_to_a_new_connection(datapath)
    datapath.play(Meanwhile(lambda dp: dp.age(2)), received("FA"))
    assert datapath.flow(CLIENT, VIP, FROM_POD).state == FlowState.ESTABLISHED
    assert datapath.flow(BACKEND_B, CLIENT, TO_POD).state == FlowState.ESTABLISHED


def test_a_syn_for_an_open_flow_stays_with_it(datapath: Datapath) -> None:
    datapath.play(*OPENED, SYN_AGAIN)


@pytest.mark.parametrize("flags", ["SA", "A", "PA", "FA", "R", "", "SR", "SF"])
def test_midstream_without_a_flow_is_left_to_the_host(datapath: Datapath, flags: str) -> None:
    datapath.play(Step(FROM_POD, tcp(CLIENT, VIP, flags), Verdict.MIDSTREAM))
    assert datapath.flows.count() == 0


def test_what_is_for_no_vip_passes(datapath: Datapath) -> None:
    datapath.play(
        Step(FROM_POD, tcp(CLIENT, OUTSIDE, "S"), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(CLIENT, BACKEND, "S"), Verdict.UNTOUCHED),
        Step(TO_POD, tcp(OUTSIDE, CLIENT, "SA"), Verdict.UNTOUCHED),
        Step(TO_POD, tcp(CLIENT, VIP, "S"), Verdict.UNTOUCHED),
    )
    assert datapath.flows.count() == 0


@pytest.mark.parametrize("between", [router_alert, longest])
def test_options_and_extension_headers_stay(datapath: Datapath, between: Between) -> None:
    datapath.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "S", b"", between), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S", b"", between)),
        Step(
            TO_POD, tcp(BACKEND, CLIENT, "SA", b"x", between), Verdict.REVERSED, tcp(VIP, CLIENT, "SA", b"x", between)
        ),
    )


TIMEOUTS = {
    "new": ((SYN,), 120),
    "established": (OPENED, 432000),
    "one FIN": ((*OPENED, sent("FA")), 3600),
    "both FINs": (CLOSED, 120),
    "reset": ((*OPENED, received("R")), 120),
}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_a_flow_lives_as_long_as_in_the_hosts_conntrack(datapath: Datapath, name: str) -> None:
    story, seconds = TIMEOUTS[name]
    still = Meanwhile(lambda dp: dp.age(seconds - 3))
    over = Meanwhile(lambda dp: dp.age(seconds + 1))
    gone = Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.MIDSTREAM)
    reply = Step(TO_POD, tcp(BACKEND, CLIENT, "A"), Verdict.UNTOUCHED)
    datapath.play(*story, still, sent("A"), over, gone, reply)


def test_an_expired_flows_port_is_balanced_anew(datapath: Datapath) -> None:
    datapath.play(*OPENED, Meanwhile(lambda dp: dp.age(432001)), SYN, SYN_ACK)


@pytest.mark.parametrize(
    ("state", "then"),
    [
        (BackendState.USABLE, Verdict.TRANSLATED),
        (BackendState.KEEP, Verdict.BALANCED),
        (BackendState.LEFT, Verdict.BALANCED),
        (BackendState.GONE, Verdict.BALANCED),
    ],
)
def test_a_syn_on_an_open_flow_avoids_a_backend_that_is_not_usable(
    datapath: Datapath, state: BackendState, then: Verdict
) -> None:
    datapath.play(*OPENED)
    datapath.set_backend(1, state=state)
    datapath.add_frontend(VIP, [datapath.add_backend(2, BACKEND_B)])
    to = BACKEND if then == Verdict.TRANSLATED else BACKEND_B
    datapath.play(Step(FROM_POD, tcp(CLIENT, VIP, "S"), then, tcp(CLIENT, to, "S")))


@pytest.mark.parametrize(
    ("source", "destination", "hook"), [(CLIENT, VIP, FROM_POD), (BACKEND, CLIENT, TO_POD)], ids=["forward", "reply"]
)
def test_either_half_that_the_lru_took_comes_back(datapath: Datapath, source, destination, hook) -> None:  # type: ignore[no-untyped-def]
    """The next packet that finds the other entry, at most a second later, restores exactly the one that was lost."""
    datapath.play(*OPENED)
    lost = datapath.flow(source, destination, hook)
    other = received("A") if hook == FROM_POD else sent("A")
    datapath.lose_flow(source, destination, hook)
    datapath.play(Meanwhile(lambda dp: dp.age(2)), other)
    restored = datapath.flow(source, destination, hook)
    restored.last_seen_seconds = lost.last_seen_seconds
    assert bytes(restored) == bytes(lost)
    datapath.play(sent("A"), received("A"))
