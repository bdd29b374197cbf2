"""How many links redirect serves, and why not the others: for `status`, /healthz and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.forwarding.obstacles import SENTENCES, Obstacle
from kproxy_ebpf.datapath.forwarding.pod_addresses import FoundAddresses
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

NAMED_IN_HEALTH = 3
SERVES_NONE = "forwarding redirect serves none of the pods' links, their packets go through the host's stack: {}"


@dataclass(frozen=True, slots=True)
class RedirectReport:
    """`served`: by family, the links whose pod's address is known; `others`: what keeps each other link from that.
    Links are named.
    """

    served: Mapping[int, frozenset[str]]
    others: Mapping[str, Obstacle]

    @classmethod
    def of(cls, found: FoundAddresses, names: Mapping[int, str]) -> Self:
        """`names`: the pods' links."""
        served = {
            family: frozenset(names[ifindex] for ifindex in addresses.values() if ifindex in names)
            for family, addresses in found.addresses.items()
        }
        return cls(served, {names[each]: obstacle for each, obstacle in found.obstacles.items() if each in names})

    @property
    def links_served(self) -> int:
        return len(frozenset[str]().union(*self.served.values()))

    def sentence(self) -> str:
        """3 of 5 links (IPv4 3, IPv6 2); no host route (/32, /128) leads to the link: veth1, veth2."""
        total = self.links_served + len(self.others)
        families = ", ".join(f"IPv{family} {len(links)}" for family, links in sorted(self.served.items()))
        return "; ".join([f"{self.links_served} of {total} links ({families})", *self._reasons()])

    def _reasons(self) -> list[str]:
        links = sorted(self.others)
        named = {obstacle: [link for link in links if self.others[link] is obstacle] for obstacle in Obstacle}
        return [f"{SENTENCES[obstacle]}: {_some(names)}" for obstacle, names in named.items() if names]

    def plain(self) -> dict[str, Any]:
        """For the status file: all links by name."""
        return {
            "served": {f"IPv{family}": sorted(links) for family, links in sorted(self.served.items())},
            "others": {name: SENTENCES[obstacle] for name, obstacle in sorted(self.others.items())},
        }


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED_IN_HEALTH
    return ", ".join(islice(names, NAMED_IN_HEALTH)) + (f" and {more} more" if more > 0 else "")


class RedirectTeller:
    """Keeps metrics and /healthz in line with the last report; `report` is None while nothing is redirected."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics, self._health = metrics, health
        self.report: RedirectReport | None = None

    def tell(self, report: RedirectReport | None) -> bool:
        """Returns True if this is news."""
        if report == self.report:
            return False
        self.report = report
        told = report or RedirectReport({}, {})
        for family in FAMILIES:
            served = self._metrics.redirect_links.labels(ip_family=f"IPv{family}")
            served.set(len(told.served.get(family, ())))
        for obstacle in Obstacle:
            self._metrics.other_links.labels(reason=obstacle.value).set(list(told.others.values()).count(obstacle))
        sentence = self._health.redirect = report.sentence() if report else None
        serves_none = told.others and not told.links_served
        self._health.problem("redirected-links", SERVES_NONE.format(sentence) if serves_none else None)
        return True
