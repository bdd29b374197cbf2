"""A TCP connection through VIP, in steps that several tests play."""

from __future__ import annotations

from harness import FROM_POD, TO_POD, Step
from packets import BACKEND, CLIENT, VIP, tcp

from kproxy_ebpf.contract.layouts import Verdict

SYN = Step(FROM_POD, tcp(CLIENT, VIP, "S", seq=100), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S", seq=100))
SYN_AGAIN = Step(FROM_POD, SYN.packet, Verdict.TRANSLATED, SYN.becomes)
SYN_ACK = Step(
    TO_POD,
    tcp(BACKEND, CLIENT, "SA", seq=900, ack=101),
    Verdict.REVERSED,
    tcp(VIP, CLIENT, "SA", seq=900, ack=101),
)


def sent(flags: str, data: bytes = b"") -> Step:
    """A segment of the client's in an established connection."""
    return Step(FROM_POD, tcp(CLIENT, VIP, flags, data), Verdict.TRANSLATED, tcp(CLIENT, BACKEND, flags, data))


def received(flags: str, data: bytes = b"") -> Step:
    return Step(TO_POD, tcp(BACKEND, CLIENT, flags, data), Verdict.REVERSED, tcp(VIP, CLIENT, flags, data))


OPENED = (SYN, SYN_ACK, sent("A"))
CLOSED = (*OPENED, sent("FA"), received("FA"), sent("A"))
