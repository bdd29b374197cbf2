"""SEMANTICS: which objects count, which endpoints are used."""

from __future__ import annotations

import pytest
from simulate import NODE, TCP, UDP, endpoint, service, slice_of

from kproxy_ebpf.contract.layouts import BackendFlags
from kproxy_ebpf.model.services import Endpoint, EndpointSlice, Node, SlicePort, packed, text_of
from kproxy_ebpf.plan.services.endpoints import Rule, backend_flags, cluster_set, known_endpoints, local_set

SERVICE = service()


def known(*slices: EndpointSlice, port_name: str = "http", family: int = 4) -> dict[str, Endpoint]:
    found = known_endpoints(slices, family, port_name, TCP, "here")
    return {f"{text_of(address)}:{port}": each for (address, port), each in found.items()}


def ready(address: str, **changes: object) -> Endpoint:
    return endpoint(address, **changes)


def draining(address: str, **changes: object) -> Endpoint:
    return endpoint(address, ready=False, terminating=True, **changes)


def dying(address: str) -> Endpoint:
    return endpoint(address, ready=False, serving=False, terminating=True)


def unready(address: str) -> Endpoint:
    return endpoint(address, ready=False, serving=False)


class TestKnown:
    def test_every_condition_is_known(self) -> None:
        found = known(slice_of(SERVICE, ready("1.1.1.1"), draining("1.1.1.2"), unready("1.1.1.3")))
        assert set(found) == {"1.1.1.1:8080", "1.1.1.2:8080", "1.1.1.3:8080"}

    def test_a_port_is_one_of_name_and_protocol(self) -> None:
        ports = (SlicePort("http", UDP, 1), SlicePort("http", TCP, 2), SlicePort("https", TCP, 3))
        assert set(known(slice_of(SERVICE, "1.1.1.1", ports=ports))) == {"1.1.1.1:2"}

    def test_each_slice_resolves_the_name_itself(self) -> None:
        other = slice_of(SERVICE, "1.1.1.2", name="web-2", ports=(SlicePort("http", TCP, 9090),))
        assert set(known(slice_of(SERVICE, "1.1.1.1"), other)) == {"1.1.1.1:8080", "1.1.1.2:9090"}

    def test_one_name_may_have_two_ports_in_one_slice(self) -> None:
        ports = (SlicePort("http", TCP, 1), SlicePort("http", TCP, 2))
        assert set(known(slice_of(SERVICE, "1.1.1.1", ports=ports))) == {"1.1.1.1:1", "1.1.1.1:2"}

    def test_families_are_apart(self) -> None:
        six = slice_of(SERVICE, "fd00::2", name="web-6", family=6)
        assert set(known(slice_of(SERVICE, "1.1.1.1"), six)) == {"1.1.1.1:8080"}
        assert set(known(slice_of(SERVICE, "1.1.1.1"), six, family=6)) == {"fd00::2:8080"}

    @pytest.mark.parametrize(
        ("better", "worse"),
        [
            (ready("1.1.1.1", node_name="there"), draining("1.1.1.1", node_name="here")),
            (ready("1.1.1.1", node_name="here"), ready("1.1.1.1", node_name="there")),
            (draining("1.1.1.1"), dying("1.1.1.1")),
            (ready("1.1.1.1", zone_hints=("b",)), ready("1.1.1.1", zone_hints=("a",))),
        ],
        ids=["alive before terminating", "then local first", "serving before not", "a tie falls the same way"],
    )
    def test_duplicates_across_slices(self, better: Endpoint, worse: Endpoint) -> None:
        one, two = slice_of(SERVICE, better), slice_of(SERVICE, worse, name="web-2")
        assert known(one, two) == known(two, one) == {"1.1.1.1:8080": better}


def addresses(choice: tuple[tuple[tuple[bytes, int], ...], Rule]) -> tuple[list[str], Rule]:
    return [text_of(address) for address, _ in choice[0]], choice[1]


def endpoints_of(*endpoints: Endpoint) -> dict[tuple[bytes, int], Endpoint]:
    return {(each.address, 8080): each for each in endpoints}


HERE, THERE, NOWHERE = {"node_hints": ("here",)}, {"node_hints": ("there",)}, {}
NEAR, FAR = {"zone_hints": ("near",)}, {"zone_hints": ("far",)}


@pytest.mark.parametrize(
    ("endpoints", "chosen", "rule"),
    [
        ([], [], Rule.NONE),
        ([unready("1.1.1.1"), dying("1.1.1.2")], [], Rule.NONE),
        ([ready("1.1.1.2"), ready("1.1.1.1")], ["1.1.1.1", "1.1.1.2"], Rule.READY),
        ([ready("1.1.1.1"), draining("1.1.1.2"), unready("1.1.1.3")], ["1.1.1.1"], Rule.READY),
        ([draining("1.1.1.1"), dying("1.1.1.2"), unready("1.1.1.3")], ["1.1.1.1"], Rule.TERMINATING),
        ([draining("1.1.1.1", **FAR)], ["1.1.1.1"], Rule.TERMINATING),
        ([ready("1.1.1.1", **HERE), ready("1.1.1.2", **THERE)], ["1.1.1.1"], Rule.SAME_NODE),
        ([ready("1.1.1.1", **HERE), ready("1.1.1.2", **NOWHERE)], ["1.1.1.1", "1.1.1.2"], Rule.READY),
        ([ready("1.1.1.1", **THERE), ready("1.1.1.2", **THERE)], ["1.1.1.1", "1.1.1.2"], Rule.READY),
        ([ready("1.1.1.1", **NEAR), ready("1.1.1.2", **FAR)], ["1.1.1.1"], Rule.SAME_ZONE),
        ([ready("1.1.1.1", **NEAR), ready("1.1.1.2")], ["1.1.1.1", "1.1.1.2"], Rule.READY),
        ([ready("1.1.1.1", **FAR)], ["1.1.1.1"], Rule.READY),
        ([ready("1.1.1.1", zone_hints=("far", "near")), ready("1.1.1.2", **FAR)], ["1.1.1.1"], Rule.SAME_ZONE),
        ([ready("1.1.1.1", **THERE, **NEAR), ready("1.1.1.2", **THERE, **FAR)], ["1.1.1.1"], Rule.SAME_ZONE),
        ([ready("1.1.1.1", **HERE, **FAR), ready("1.1.1.2", **THERE, **NEAR)], ["1.1.1.1"], Rule.SAME_NODE),
        # hints are counted over ready endpoints alone
        ([ready("1.1.1.1", **NEAR), ready("1.1.1.2", **FAR), unready("1.1.1.3")], ["1.1.1.1"], Rule.SAME_ZONE),
        ([ready("1.1.1.1", **FAR), draining("1.1.1.2", **NEAR)], ["1.1.1.1"], Rule.READY),
    ],
)
def test_cluster_set(endpoints: list[Endpoint], chosen: list[str], rule: Rule) -> None:
    assert addresses(cluster_set(endpoints_of(*endpoints), NODE)) == (chosen, rule)


def test_a_node_without_zone_has_no_zone_hints() -> None:
    assert cluster_set(endpoints_of(ready("1.1.1.1", **FAR)), Node("here")).rule is Rule.READY


LOCAL = {"node_name": "here"}


@pytest.mark.parametrize(
    ("endpoints", "chosen", "rule"),
    [
        ([], [], Rule.NONE),
        ([unready("1.1.1.1")], [], Rule.NONE),
        ([ready("1.1.1.1"), ready("1.1.1.2", **LOCAL)], ["1.1.1.2"], Rule.LOCAL_READY),
        ([ready("1.1.1.1", **LOCAL, **FAR), ready("1.1.1.2", **NEAR)], ["1.1.1.1"], Rule.LOCAL_READY),
        ([ready("1.1.1.1"), draining("1.1.1.2", **LOCAL)], ["1.1.1.2"], Rule.LOCAL_TERMINATING),
        ([ready("1.1.1.1", **LOCAL), draining("1.1.1.2", **LOCAL)], ["1.1.1.1"], Rule.LOCAL_READY),
        ([ready("1.1.1.1")], [], Rule.LOCAL_NONE),
        ([draining("1.1.1.1")], [], Rule.LOCAL_NONE),
    ],
)
def test_local_set(endpoints: list[Endpoint], chosen: list[str], rule: Rule) -> None:
    assert addresses(local_set(endpoints_of(*endpoints), NODE)) == (chosen, rule)


def test_an_endpoint_without_node_is_not_local_to_a_node_without_name() -> None:
    assert local_set(endpoints_of(ready("1.1.1.1")), Node("")).rule is Rule.LOCAL_NONE


@pytest.mark.parametrize(
    ("each", "flags"),
    [
        (ready("1.1.1.1"), BackendFlags.READY),
        (ready("1.1.1.1", **LOCAL), BackendFlags.READY | BackendFlags.LOCAL),
        (unready("1.1.1.1"), 0),
        (endpoint("1.1.1.1", ready=True, terminating=True), 0),
    ],
    ids=["ready", "local", "not ready", "terminating although published"],
)
def test_backend_flags(each: Endpoint, flags: int) -> None:
    assert backend_flags(each, "here") == flags


def test_packed_addresses_sort_as_numbers() -> None:
    assert packed("9.0.0.1") < packed("10.0.0.1")
