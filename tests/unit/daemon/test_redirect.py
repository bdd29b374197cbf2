"""What is told of the links that redirect serves, and of those that it does not."""

from __future__ import annotations

from kproxy_ebpf.cli.status import report_lines
from kproxy_ebpf.daemon.redirect import RedirectReport, RedirectTeller
from kproxy_ebpf.datapath.forwarding.obstacles import Obstacle
from kproxy_ebpf.datapath.forwarding.pod_addresses import FoundAddresses
from kproxy_ebpf.linux.rtnetlink import Survey
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

NAMES = {link: f"veth{link}" for link in range(1, 8)}
NOTHING = Survey({}, {})
SOME = FoundAddresses(
    {},
    {4: {b"a": 1, b"b": 2}, 6: {b"c": 2, b"d": 3, b"gone": 99}},
    {4: Obstacle.QUEUE, 5: Obstacle.NO_HOST_ROUTE, 6: Obstacle.NO_HOST_ROUTE, 98: Obstacle.DOWN},
    NOTHING,
)
NONE = FoundAddresses({}, {4: {}, 6: {}}, dict.fromkeys(range(1, 8), Obstacle.NO_HOST_ROUTE), NOTHING)


def test_links_are_told_with_what_is_amiss() -> None:
    metrics, health = Metrics(), Health(60)
    teller = RedirectTeller(metrics, health)
    assert teller.tell(RedirectReport.of(SOME, NAMES))
    assert health.healthz()[1]["redirect"] == (
        "3 of 6 links (IPv4 2, IPv6 2); the link has a queueing discipline, in which packets must wait: veth4; "
        "no host route (/32, /128) leads to the link: veth5, veth6"
    )
    assert health.problems == {}
    value = metrics.registry.get_sample_value
    assert value("kproxy_ebpf_redirect_links", {"ip_family": "IPv6"}) == 2
    assert value("kproxy_ebpf_redirect_other_links", {"reason": "no_host_route"}) == 2
    assert not teller.tell(RedirectReport.of(SOME, NAMES)), "no news"


def test_that_no_link_is_served_is_a_problem_until_redirect_is_turned_off() -> None:
    metrics, health = Metrics(), Health(60)
    teller = RedirectTeller(metrics, health)
    teller.tell(RedirectReport.of(NONE, NAMES))
    assert "0 of 7 links (IPv4 0, IPv6 0); no host route" in health.problems["redirected-links"]
    assert "veth1, veth2, veth3 and 4 more" in health.problems["redirected-links"]
    teller.tell(None)
    assert health.problems == {}
    assert "redirect" not in health.healthz()[1]
    assert metrics.registry.get_sample_value("kproxy_ebpf_redirect_other_links", {"reason": "no_host_route"}) == 0


def test_status_names_all_links_that_are_not_served() -> None:
    daemon = {"running": False, "redirect": RedirectReport.of(SOME, NAMES).plain()}
    report = {"daemon": daemon, "health": None, "generation": None, "tables": {}, "verdicts": {}}
    assert [line for line in report_lines(report) if line.startswith("redirect")] == [
        "redirect    serves 3 of 6 links (IPv4 2, IPv6 2)",
        "redirect    not veth4: the link has a queueing discipline, in which packets must wait",
        "redirect    not veth5, veth6: no host route (/32, /128) leads to the link",
    ]
