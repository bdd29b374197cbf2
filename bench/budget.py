"""What one packet costs each program, alone: BPF_PROG_TEST_RUN, again and again, with warm caches.

The Service's backend has the VIP's own address and port, so a translated packet is the packet that it was and can be
run again; that saves the second checksum update, which a packet whose port changes needs.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

from bench.bare import TCP, VIP, Bare, one_service
from bench.plan import Plan
from bench.run import Run, Step
from kproxy_ebpf.contract.layouts import Direction
from kproxy_ebpf.datapath.frames import first_packet
from kproxy_ebpf.datapath.maps.packing import flow_key
from kproxy_ebpf.lab import Lab
from kproxy_ebpf.linux.bpf import Program
from kproxy_ebpf.model.flows import FlowTuple

REPEAT, TIMES, SINGLE_RUNS = 100_000, 7, 500
CLIENT, STRANGER = IPv4Address("10.244.1.2").packed, IPv4Address("10.99.0.1").packed
VIP_PORT, CLIENT_PORT = 80, 40000
TCP_FLAGS_AT, ACK = 14 + 20 + 13, b"\x10"


def measure(run: Run, plan: Plan) -> None:  # noqa: ARG001
    with Lab() as lab:
        bare = Bare(lab.node("n1"))
        bare.write(one_service([str(VIP)], VIP_PORT, VIP_PORT))
        run.steps += _steps(bare)


def _steps(bare: Bare) -> Iterator[Step]:
    there = FlowTuple(CLIENT, CLIENT_PORT, VIP.packed, VIP_PORT, TCP, Direction.FROM_POD)
    back = replace(there.reversed(), direction=Direction.TO_POD)
    stranger = replace(there, destination=STRANGER)
    away = replace(stranger.reversed(), direction=Direction.TO_POD)
    syn, ack = first_packet, _acknowledgement
    with bare.generation.program("from_pod", 4) as from_pod, bare.generation.program("to_pod", 4) as to_pod:
        yield _step(bare, from_pod, "first of a connection (each run alone)", _first(bare, from_pod, there))
        yield _step(bare, from_pod, "the same, of a known flow (each run alone)", _single(from_pod, ack(there)))
        yield _step(bare, from_pod, "known flow, to the backend", _repeated(from_pod, ack(there)))
        yield _step(bare, to_pod, "known flow, back to the client", _repeated(to_pod, ack(back)))
        yield _step(bare, from_pod, "for no Service, first of a connection", _repeated(from_pod, syn(stranger)))
        yield _step(bare, from_pod, "for no Service, later", _repeated(from_pod, ack(stranger)))
        yield _step(bare, to_pod, "for no Service, to the pod", _repeated(to_pod, ack(away)))
    with bare.generation.program("from_pod", 6) as other:
        yield _step(bare, other, "of the other address family", _repeated(other, ack(there)))


def _acknowledgement(packet: FlowTuple) -> bytes:
    frame = first_packet(packet)
    return frame[:TCP_FLAGS_AT] + ACK + frame[TCP_FLAGS_AT + 1 :]


def _repeated(program: Program, frame: bytes) -> float:
    return median(program.test_run(frame, repeat=REPEAT).nanoseconds for _ in range(TIMES))


def _single(program: Program, frame: bytes) -> float:
    return median(program.test_run(frame).nanoseconds for _ in range(SINGLE_RUNS))


def _first(bare: Bare, program: Program, packet: FlowTuple) -> float:
    """Before each run the flow that the last one made is taken away; after the last one it stays."""
    times = []
    reply = replace(packet.reversed(), direction=Direction.TO_POD)
    with bare.generation.map("flows", 4) as flows:
        for _ in range(SINGLE_RUNS):
            flows.delete(flow_key(4, packet))
            flows.delete(flow_key(4, reply))
            times.append(program.test_run(first_packet(packet)).nanoseconds)
    return median(times)


def _step(bare: Bare, program: Program, packet: str, nanoseconds: float) -> Step:
    told = subprocess.run(
        ["bpftool", "--json", "prog", "show", "pinned", str(bare.generation.path / "programs" / program.name)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    facts = Path(f"/proc/self/fdinfo/{program.fd}").read_text()
    verified = re.search(r"^verified_insns:\s+(\d+)$", facts, re.MULTILINE)
    instructions = json.loads(told.stdout)["bytes_xlated"] // 8
    return Step(packet, program.name, nanoseconds, instructions, int(verified[1]) if verified else 0)
