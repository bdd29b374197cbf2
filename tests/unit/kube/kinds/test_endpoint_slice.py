"""Which EndpointSlices count, what is read of them, and what is refused with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_api import labelled, slice_, v4, v6

from kproxy_ebpf.kube.addresses import PartialRefusal, Refusal
from kproxy_ebpf.kube.kinds.endpoint_slice import ENDPOINT_SLICE
from kproxy_ebpf.model.services import Endpoint, Protocol, ServiceName, SlicePort


def endpoint(address: str = "10.244.0.1", **fields: Any) -> dict[str, Any]:
    return {"addresses": [address], **fields}


def parsed_with(**fields: Any):
    parsed = ENDPOINT_SLICE.parse(slice_(**fields))
    assert parsed is not None
    return parsed


def test_everything_a_proxy_needs():
    obj = slice_(
        endpoints=[
            endpoint("10.244.0.1", nodeName="n1", hints={"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}),
            endpoint("10.244.0.2", conditions={"ready": False, "serving": True, "terminating": True}),
        ],
        ports=[{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    )
    obj["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:01:00Z"}
    parsed = ENDPOINT_SLICE.parse(obj)
    assert parsed is not None
    assert (parsed.namespace, parsed.name, parsed.family) == ("default", "web-1", 4)
    assert parsed.service == ServiceName("default", "web")
    assert parsed.ports == (SlicePort("http", Protocol.TCP, 8080), SlicePort("dns", Protocol.UDP, 53))
    assert parsed.endpoints == (
        Endpoint(v4("10.244.0.1"), node_name="n1", zone_hints=("a",), node_hints=("n1",)),
        Endpoint(v4("10.244.0.2"), ready=False, serving=True, terminating=True),
    )
    assert parsed.trigger_time == 60.0


def test_ipv6():
    parsed = parsed_with(addressType="IPv6", endpoints=[endpoint("fd00::1"), endpoint("64:ff9b::1")])
    assert parsed.family == 6
    assert [e.address for e in parsed.endpoints] == [v6("fd00::1"), v6("64:ff9b::1")]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"ready": False, "serving": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_conditions_that_are_nil(conditions, expected):
    (parsed,) = parsed_with(endpoints=[endpoint(conditions=conditions)]).endpoints
    assert (parsed.ready, parsed.serving, parsed.terminating) == expected


def test_only_the_first_address_counts_and_empty_lists_do_not():
    parsed = parsed_with(endpoints=[{"addresses": ["10.244.0.1", "nonsense"]}, {"addresses": []}, {}])
    assert [e.address for e in parsed.endpoints] == [v4("10.244.0.1")]


def test_nil_and_zero_ports_are_ignored():
    assert parsed_with(ports=[{"name": "a"}, {"name": "b", "port": 0}, {"port": 1}]).ports == (
        SlicePort("", Protocol.TCP, 1),
    )
    assert parsed_with(ports=None, endpoints=None).ports == ()


def test_a_thousand_endpoints_are_admitted_and_share_their_strings():
    hints = {"forZones": [{"name": "zone-a"}]}
    wire = json.dumps(
        slice_(endpoints=[endpoint(f"10.0.{i // 250}.{i % 250}", nodeName="n", hints=hints) for i in range(1000)])
    )
    parsed = ENDPOINT_SLICE.parse(wire.encode())
    assert parsed is not None
    assert len(parsed.endpoints) == 1000
    assert len({id(e.node_name) for e in parsed.endpoints}) == 1
    assert len({id(e.zone_hints) for e in parsed.endpoints}) == 1


@pytest.mark.parametrize(
    "skipped",
    [
        slice_(addressType="FQDN", endpoints=[endpoint("example.com")]),
        slice_(addressType="Vsock", endpoints=[endpoint("3")]),
        {**slice_(), "metadata": {"name": "x", "namespace": "default"}},
        slice_(service_name=""),
        labelled(slice_(), **{"service.kubernetes.io/headless": ""}),
    ],
)
def test_what_a_proxy_skips(skipped):
    assert ENDPOINT_SLICE.parse(skipped) is None


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        ({"metadata": {"name": "x"}}, "addressType: field required"),
        (
            slice_(endpoints=[{"addresses": [7]}]),
            "endpoints[0].addresses[0]: should be a valid string, not 7",
        ),
        (slice_(count=1001), "endpoints: List should have at most 1000 items"),
        (slice_(ports=[{"port": 65536}]), "ports[0].port: should be less than or equal to 65535"),
        (
            slice_(ports=[{"port": 1, "protocol": "tcp"}]),
            "ports[0].protocol: should be 'TCP', 'UDP' or 'SCTP'",
        ),
        (slice_(ports=[{"port": 1}, {"port": 2}]), "ports: '' is there twice as a name"),
        (
            slice_(endpoints=[endpoint(conditions={"ready": "true"})]),
            "endpoints[0].conditions.ready: should be",
        ),
        (
            slice_(endpoints=[endpoint(hints={"forZones": [{}]})]),
            "endpoints[0].hints.forZones[0].name: field required",
        ),
    ],
)
def test_what_is_refused_and_why(obj, reason):
    for form in (obj, json.dumps(obj).encode()):
        with pytest.raises(Refusal) as refusal:
            ENDPOINT_SLICE.parse(form)
        assert str(refusal.value).startswith(reason)


@pytest.mark.parametrize(
    ("address_type", "bad", "good", "why"),
    [
        ("IPv4", "fd00::1", "10.0.0.1", "is not an IPv4 address"),
        ("IPv4", "", "10.0.0.1", "is not an IPv4 address"),
        ("IPv4", "10.0.0.256", "10.0.0.1", "is not an IPv4 address"),
        ("IPv4", "127.0.0.1", "10.0.0.1", "is unspecified, loopback or link-local"),
        ("IPv6", "10.0.0.1", "fd00::1", "is not an IPv6 address"),
        ("IPv6", "::ffff:10.0.0.1", "fd00::1", "is an IPv4 address in IPv6 form"),
    ],
)
def test_a_bad_endpoint_is_left_out_alone(address_type, bad, good, why):
    obj = slice_(addressType=address_type, endpoints=[endpoint(good), endpoint(bad), endpoint(bad)])
    with pytest.raises(PartialRefusal) as refusal:
        ENDPOINT_SLICE.parse(obj)
    assert str(refusal.value) == f"endpoints[1].addresses[0]: {bad!r} {why} (and 1 more)"
    assert refusal.value.rest == ENDPOINT_SLICE.parse({**obj, "endpoints": [endpoint(good)]})


def test_leading_zeros_are_decimal():
    parsed = parsed_with(endpoints=[endpoint("010.0244.000.0010"), endpoint("10.244.0.8")])
    assert [e.address for e in parsed.endpoints] == [v4("10.244.0.10"), v4("10.244.0.8")]
    with pytest.raises(PartialRefusal, match="unspecified, loopback"):
        parsed_with(endpoints=[endpoint("0127.0.0.1")])


@pytest.mark.parametrize(
    ("address_type", "address"),
    [("IPv4", a) for a in ("0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1")]
    + [("IPv6", a) for a in ("::", "::1", "fe80::1", "febf::1", "ff02::1", "ff12::1")],
)
def test_addresses_that_nothing_may_be_sent_on_to(address_type, address):
    with pytest.raises(Refusal, match=f"{address}' is unspecified, loopback or link-local"):
        ENDPOINT_SLICE.parse(slice_(addressType=address_type, endpoints=[endpoint(address)]))


@pytest.mark.parametrize("address", ["0.0.0.1", "169.253.0.1", "224.0.1.1", "223.0.0.1", "126.0.0.1"])
def test_neighbours_of_those_addresses_are_ordinary(address):
    assert parsed_with(endpoints=[endpoint(address)]).endpoints[0].address == v4(address)


@pytest.mark.parametrize("text", ["", "yesterday", "2024-01-01"])
def test_an_unreadable_trigger_time_does_no_harm(text):
    obj = slice_()
    obj["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert ENDPOINT_SLICE.parse(obj) is not None


def test_trigger_time_in_nanoseconds():
    obj = slice_()
    key = "endpoints.kubernetes.io/last-change-trigger-time"
    obj["metadata"]["annotations"] = {key: "1970-01-01T00:00:01.123456789Z"}
    parsed = ENDPOINT_SLICE.parse(obj)
    assert parsed is not None
    assert parsed.trigger_time == pytest.approx(1.123456)
