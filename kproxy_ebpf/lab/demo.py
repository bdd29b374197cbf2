"""The demo: a pod reaches a Service, and backends come and go, on a node made of network namespaces.

Everything happens in a `Lab` of its own and is gone at the end, also after Ctrl-C. Each step tells what it proves; one
that proves the contrary ends the demo with an error.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import click

from kproxy_ebpf.errors import KproxyError, NodeError, PermissionDeniedError
from kproxy_ebpf.lab.cluster import Lab, Node, Pod
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.traffic import EchoServer, Load, ask, opened, read_answer
from kproxy_ebpf.lab.wait import until

VIPS = ("10.96.0.10", "fd00:96::10")
PORTS = {"http": (80, "TCP", 8080)}
REQUESTS = 300
BAR_CELLS = 40
SHOWN_FLOWS = 4
TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}

MEANINGS = {
    "untouched": "begins nothing and belongs to nothing: here, requests as they reach the backends",
    "balanced": "first packet of a connection: a backend was chosen",
    "translated": "on its way to that backend",
    "reversed": "on its way back: the client sees the VIP as its peer",
    "midstream": "TCP of no flow at this link, left to the host: here, answers as they leave the backends",
}


def run() -> None:
    """Show it all. Raises KproxyError where the machine can't, or where a step shows what it should not."""
    require_machine()
    begin = time.monotonic()
    with end_on_sigterm(), ExitStack() as stack:
        lab = stack.enter_context(Lab())
        demo = Demo(lab, stack)
        demo.start()
        demo.spread()
        demo.change_under_load()
        demo.show_flows()
        demo.show_verdicts()
        demo.show_conntrack()
        demo.show_sockets()
        said("Tidying up", "the daemon, the namespaces and all that was pinned")
    click.echo(f"\nDone in {time.monotonic() - begin:.0f} s; nothing is left on this machine.")


class Demo:
    """The steps, in their order. `shop` are the pods behind the Service by name."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.node: Node = lab.node("node1")
        self.client: Pod = self.node.pod("client")
        self.shop: dict[str, Pod] = {}
        self._stack = stack

    def start(self) -> None:
        said(
            "A node, a client, three backends",
            "Pods and node are network namespaces joined by veth pairs. A Service and its EndpointSlices are YAML "
            "files; the daemon compiles its programs, attaches them to the pods' links and fills their tables.",
        )
        begin = time.monotonic()
        self.daemon = Daemon(self.node, settings={"mode": "tc"})
        for name in ("shop-1", "shop-2", "shop-3"):
            self.add_backend(name)
        self.daemon.manifests.service("shop", VIPS, PORTS)
        self.publish()
        checked = self.daemon.command("check", check=False)
        if checked.returncode:
            raise NodeError(f"this machine can't run the datapath:\n{checked.stdout}{checked.stderr}".rstrip())
        self.daemon.start()
        until(lambda: all(ask(self.client, vip, 80) for vip in VIPS), "the Service to answer")
        shown(f"Service shop at {VIPS[0]}:80 and [{VIPS[1]}]:80, ready after {time.monotonic() - begin:.1f} s")

    def spread(self) -> None:
        said(
            f"{REQUESTS} requests, half of them over IPv6",
            "A new connection each. The programs rewrite VIP to backend as a packet leaves the client's link, "
            "and backend to VIP as the answer enters it.",
        )
        begin = time.monotonic()
        answers = Counter(ask(self.client, VIPS[number % 2], 80).server for number in range(REQUESTS))
        bars(answers)
        shown(f"{(time.monotonic() - begin) / REQUESTS * 1000:.2f} ms a request, most of it this demo's own")
        if set(answers) != set(self.shop):
            wrong(f"of {', '.join(self.shop)} only {', '.join(answers)} answered")

    def change_under_load(self) -> None:
        said(
            "shop-3 leaves, shop-4 comes, under load",
            "Connection after connection, without a pause, while the EndpointSlice is rewritten: "
            "a set of backends is replaced in one write.",
        )
        load = Load(self.client, VIPS[0], 80)
        try:
            load.go_on(REQUESTS)
            withdrawn = time.monotonic()
            del self.shop["shop-3"]
            self.publish()
            load.go_on(REQUESTS)
            self.add_backend("shop-4")
            added = time.monotonic()
            self.publish()
            until(lambda: "shop-4" in load.first_seen, "shop-4 to answer")
            load.go_on(REQUESTS)
        finally:
            load.stop()
        bars(load.answers)
        shown(f"{load.answers.total()} requests, {len(load.failures)} failed")
        left, came = load.last_seen["shop-3"] - withdrawn, load.first_seen["shop-4"] - added
        shown(f"shop-3 was left alone {left * 1000:.0f} ms after the file said so")
        shown(f"shop-4 answered after {came * 1000:.0f} ms")
        if load.failures:
            wrong(f"requests failed: {load.failures[:3]}")

    def show_flows(self) -> None:
        said(
            "kproxy-ebpf flows",
            "Our connection tracking: a flow remembers its backend, so a change of the set never moves a connection. "
            f"{SHOWN_FLOWS} of them; closed ones expire by themselves.",
        )
        with ExitStack() as held:
            for number in range(SHOWN_FLOWS):
                read_answer(held.enter_context(opened(self.client, VIPS[number % 2], 80)), 0)
            rows = self.daemon.json("flows")
        rows.sort(key=lambda row: (row["state"] != "established", row["family"]))
        for row in rows[:SHOWN_FLOWS]:
            shown(f"{row['client']} → {row['vip']} → {row['backend']}  {row['state']}")
        shown(f"… {len(rows)} in all")
        if not any(row["state"] == "established" for row in rows):
            wrong("none of the open connections is listed")

    def show_verdicts(self) -> None:
        said("The verdict counters", "Every packet on a pod's link ended in exactly one of these.")
        verdicts = self.verdicts()
        for name, count in verdicts.items():
            if count:
                shown(f"{count:>8} {name:<12} {MEANINGS.get(name, '')}")
        self.balanced = verdicts["balanced"]

    def show_conntrack(self) -> None:
        try:
            entries = int(self.node.read_sysctl("netfilter/nf_conntrack_count"))
        except FileNotFoundError:  # the module is not loaded
            entries = 0
        said(
            "The host's conntrack table",
            "NAT by netfilter keeps an entry per connection. Ours needs none: as long as no rule of the host's own "
            "asks for tracking, and on this node there is none, the table stays empty.",
        )
        shown(f"{entries} entries, after {self.balanced} connections through the Service")
        if entries:
            wrong(f"the node's conntrack table has {entries} entries")

    def show_sockets(self) -> None:
        said(
            "Mode hybrid: the socket fast path",
            "So far the mode was tc. Now connect() itself leads a socket to a backend: no packet is touched, no flow "
            "is kept, and the client still sees the VIP as its peer.",
        )
        if lacking := self._lacks_for_sockets():
            shown(f"This kernel can't do that, and mode hybrid is served as tc there: {lacking}")
            return
        self.daemon.settings({"mode": "hybrid"})
        until(self._is_led, "connections to be led at the socket")
        before, begin = self.verdicts(), time.monotonic()
        answers = Counter(ask(self.client, VIPS[number % 2], 80).server for number in range(REQUESTS))
        seconds, after = time.monotonic() - begin, self.verdicts()
        bars(answers)
        connected, balanced = (after[name] - before[name] for name in ("connected", "balanced"))
        shown(f"{seconds / REQUESTS * 1000:.2f} ms a request; {connected} sockets led, {balanced} packets balanced")
        with opened(self.client, VIPS[0], 80) as handle:
            answer, peer = read_answer(handle, 0), handle.getpeername()[0]
            shown(f"the client's peer is {peer}; {answer.server} answers, and sees {answer.client}")
        if (connected, balanced, peer) != (REQUESTS, 0, VIPS[0]):
            wrong("the link had work left, or the client did not see the VIP")

    def _lacks_for_sockets(self) -> str:
        """What `check` finds missing for the socket fast path; "" where it is there."""
        checks = {each["name"]: each for each in self.daemon.json("check")}
        return "; ".join(checks[name]["detail"] for name in ("cgroup2", "netns cookie") if not checks[name]["ok"])

    def _is_led(self) -> bool:
        before = self.verdicts()["connected"]
        ask(self.client, VIPS[0], 80)
        return self.verdicts()["connected"] > before

    def verdicts(self) -> dict[str, int]:
        """How many packets (or sockets) had each verdict."""
        counts: Mapping[str, Mapping[str, int]] = self.daemon.json("status")["verdicts"]
        return {name: count["packets"] for name, count in counts.items()}

    def add_backend(self, name: str) -> None:
        pod = self.shop[name] = self.node.pod(name)
        server = EchoServer(pod, name).listen(pod.ip4, 8080).listen(pod.ip6, 8080)
        self._stack.callback(server.close)

    def publish(self) -> None:
        """Write the Service's EndpointSlices: its set of backends is what `shop` holds."""
        addresses = [address for pod in self.shop.values() for address in (pod.ip4, pod.ip6)]
        self.daemon.manifests.endpoints("shop", addresses, PORTS)


def require_machine() -> None:
    """Raises NodeError that names what the lab needs and what is missing; the datapath's needs are `check`'s."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("the demo makes network namespaces and loads BPF programs: run it as root")
    for tool, package in TOOLS.items():
        if not shutil.which(tool):
            raise NodeError(f"the demo needs the command {tool}: install the package {package}")


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that everything is tidied up."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def said(title: str, explanation: str) -> None:
    """The head of a step, with what it means."""
    click.echo("\n" + click.style(title, bold=True))
    click.echo(click.wrap_text(explanation, width=96, initial_indent="  ", subsequent_indent="  "))


def shown(line: str) -> None:
    click.echo("    " + line)


def bars(answers: Mapping[str, int]) -> None:
    """How many requests each server answered, as bars of one scale."""
    most = max(answers.values())
    for name in sorted(answers):
        cells = round(answers[name] / most * BAR_CELLS)
        shown(f"{name}  {click.style('█' * cells, fg='green')}{' ' * (BAR_CELLS - cells)} {answers[name]:>6}")


def wrong(sentence: str) -> NoReturn:
    raise KproxyError(f"this is not as it should be: {sentence}")
