"""Which objects count, what is read of them, and what is refused with which words."""

from __future__ import annotations

import json
from socket import AF_INET6, inet_pton
from typing import Any

import pytest
from fake_api import service, slice_

from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds.common import parse_node, parse_service, parse_slice
from kproxy_ebpf.model.services import (
    Endpoint,
    Node,
    Protocol,
    ServiceName,
    ServicePort,
    SlicePort,
    SourceRange,
    TrafficPolicy,
)


def v4(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def v6(text: str) -> bytes:
    return inet_pton(AF_INET6, text)


def endpoint(address: str = "10.244.0.1", **fields: Any) -> dict[str, Any]:
    return {"addresses": [address], **fields}


def labelled(obj: dict[str, Any], **labels: str) -> dict[str, Any]:
    prefixed = {key.replace("_", "-"): value for key, value in labels.items()}
    return {**obj, "metadata": {**obj["metadata"], "labels": {**obj["metadata"].get("labels", {}), **prefixed}}}


class TestServices:
    def test_everything_a_proxy_needs(self):
        obj = service(
            type="LoadBalancer",
            clusterIP="10.96.0.10",
            clusterIPs=["10.96.0.10", "fd00::10"],
            ports=[
                {"name": "http", "port": 80, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
            ],
            externalIPs=["192.0.2.1", "192.0.2.1", "2001:db8::1"],
            loadBalancerSourceRanges=[" 10.0.0.0/8 ", "fd00::/8"],
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
            internalTrafficPolicy="Local",
            externalTrafficPolicy="Local",
            publishNotReadyAddresses=True,
        )
        obj["metadata"] |= {"uid": "u1", "creationTimestamp": "2024-01-01T00:00:00Z"}
        ingress = [
            {"ip": "198.51.100.1"},
            {"ip": "198.51.100.2", "ipMode": "VIP"},
            {"ip": "198.51.100.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"},
            {"ip": "2001:db8::2"},
        ]
        parsed = parse_service({**obj, "status": {"loadBalancer": {"ingress": ingress}}})
        assert parsed is not None
        assert parsed.key == ServiceName("default", "web")
        assert parsed.cluster_ips == (v4("10.96.0.10"), v6("fd00::10"))
        assert parsed.ports == (
            ServicePort("http", Protocol.TCP, 80, 30080),
            ServicePort("dns", Protocol.UDP, 53),
        )
        assert parsed.type == "LoadBalancer"
        assert parsed.external_ips == (v4("192.0.2.1"), v6("2001:db8::1"))
        assert parsed.load_balancer_ips == (v4("198.51.100.1"), v4("198.51.100.2"), v6("2001:db8::2"))
        assert parsed.source_ranges == (SourceRange(v4("10.0.0.0"), 8), SourceRange(v6("fd00::"), 8))
        assert parsed.affinity_seconds == 60
        assert parsed.internal_traffic_policy is TrafficPolicy.LOCAL
        assert parsed.external_traffic_policy is TrafficPolicy.LOCAL
        assert parsed.publish_not_ready
        assert (parsed.uid, parsed.created) == ("u1", "2024-01-01T00:00:00Z")

    def test_bytes_and_null_fields(self):
        obj = service(externalIPs=None, sessionAffinity=None, clusterIPs=None, internalTrafficPolicy=None)
        assert parse_service(json.dumps({**obj, "status": None}).encode()) == parse_service(service())

    def test_affinity_defaults_to_three_hours(self):
        parsed = parse_service(service(sessionAffinity="ClientIP"))
        assert parsed is not None
        assert parsed.affinity_seconds == 10800

    @pytest.mark.parametrize("unknown", ["", "local", "Nearest"])
    def test_an_unknown_policy_means_cluster(self, unknown):
        parsed = parse_service(service(internalTrafficPolicy=unknown, externalTrafficPolicy=unknown))
        assert parsed is not None
        assert parsed.internal_traffic_policy is parsed.external_traffic_policy is TrafficPolicy.CLUSTER

    @pytest.mark.parametrize(
        "skipped",
        [
            service(clusterIP=""),
            service(clusterIP="None"),
            service(clusterIP=None),
            service(type="ExternalName"),
            labelled(service(), **{"service.kubernetes.io/service-proxy-name": ""}),
            labelled(service(), **{"service.kubernetes.io/service-proxy-name": "other"}),
        ],
    )
    def test_what_a_proxy_skips(self, skipped):
        assert parse_service(skipped) is None

    def test_our_own_proxy_name_counts_and_so_does_none(self):
        ours = labelled(service(), **{"service.kubernetes.io/service-proxy-name": "us"})
        others = labelled(service(), **{"service.kubernetes.io/service-proxy-name": "them"})
        assert parse_service(ours, "us") == parse_service(service(), "us")
        assert parse_service(others, "us") is None

    @pytest.mark.parametrize(
        ("obj", "reason"),
        [
            ({"spec": {}}, "metadata: field required"),
            ({"metadata": {"name": "x"}}, "spec: field required"),
            ({"metadata": {"name": 1}, "spec": {}}, "metadata.name: should be a valid string, not 1"),
            (
                {"metadata": {"name": "x", "labels": []}, "spec": {}},
                "metadata.labels: should be an object",
            ),
            (service(ports=[{"port": "80"}]), "spec.ports[0].port: should be a valid integer, not '80'"),
            (service(ports=[{"port": 80.0}]), "spec.ports[0].port: should be a valid integer, not 80.0"),
            (service(ports=[{"port": True}]), "spec.ports[0].port: should be a valid integer, not True"),
            (service(ports=[{"port": 0}]), "spec.ports[0].port: should be greater than or equal to 1, not 0"),
            (
                service(ports=[{"port": 65536}]),
                "spec.ports[0].port: should be less than or equal to 65535, not 65536",
            ),
            (service(ports=[{"name": "x"}]), "spec.ports[0].port: field required"),
            (service(ports={}), "spec.ports: should be a list, not an object"),
            (service(ports=[]), "spec.ports: a Service needs at least one port"),
            (service(ports=[{"port": 80, "nodePort": -1}]), "spec.ports[0].nodePort: should be greater"),
            (
                service(ports=[{"port": 80, "protocol": "SPX"}]),
                "spec.ports[0].protocol: should be 'TCP', 'UDP' or 'SCTP', not 'SPX'",
            ),
            (
                service(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 80}]),
                "spec.ports: '80/TCP' is there twice as a port",
            ),
            (service(ports=[{"port": 80}, {"port": 81}]), "spec.ports: '' is there twice as a name"),
            (
                service(ports=[{"name": "a", "port": 80, "nodePort": 3}, {"name": "b", "port": 81, "nodePort": 3}]),
                "spec.ports: '3/TCP' is there twice as a nodePort",
            ),
            (service(clusterIP="10.96.0"), "spec.clusterIPs[0]: '10.96.0' is not an IP address"),
            (service(clusterIP="10.96.0.010"), "spec.clusterIPs[0]: '10.96.0.010' is not an IP address"),
            (
                service(clusterIP="::ffff:10.96.0.1"),
                "spec.clusterIPs[0]: '::ffff:10.96.0.1' is an IPv4 address in IPv6 form",
            ),
            (service(clusterIP="127.0.0.1"), "spec.clusterIPs[0]: '127.0.0.1' is unspecified, loopback or link-local"),
            (
                service(clusterIPs=["10.96.0.11"]),
                "spec.clusterIPs[0]: '10.96.0.11' differs from spec.clusterIP '10.96.0.10'",
            ),
            (service(clusterIPs=["10.96.0.10", "10.96.0.11"]), "spec.clusterIPs: more than one address of a family"),
            (service(externalIPs=["x\0"]), "spec.externalIPs[0]: 'x\\x00' is not an IP address"),
            (service(externalIPs=["fe80::1"]), "spec.externalIPs[0]: 'fe80::1' is unspecified, loopback or link-local"),
            (
                service(loadBalancerSourceRanges=["10.0.0.0"]),
                "spec.loadBalancerSourceRanges[0]: '10.0.0.0' is not a CIDR",
            ),
            (
                service(loadBalancerSourceRanges=["10.0.0.0/8", "10.0.0.0/33"]),
                "spec.loadBalancerSourceRanges[1]: '10.0.0.0/33' is not a CIDR",
            ),
            (
                service(loadBalancerSourceRanges=["10.0.0.0/255.0.0.0"]),
                "spec.loadBalancerSourceRanges[0]: '10.0.0.0/255.0.0.0' is not a CIDR",
            ),
            (
                {**service(), "status": {"loadBalancer": {"ingress": [{"ip": "nowhere"}]}}},
                "status.loadBalancer.ingress[0].ip: 'nowhere' is not an IP address",
            ),
            (
                service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}}),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: should be less than or equal to 86400",
            ),
        ],
    )
    def test_what_is_refused_and_why(self, obj, reason):
        for form in (obj, json.dumps(obj).encode()):
            with pytest.raises(Refusal) as refusal:
                parse_service(form)
            assert str(refusal.value).startswith(reason)

    def test_a_reason_is_one_short_line(self):
        with pytest.raises(Refusal) as refusal:
            parse_service(service(externalIPs=["\n\x1b[31m" + "x" * 10_000]))
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 200


class TestSlices:
    def parse(self, **fields: Any):
        parsed = parse_slice(slice_(**fields))
        assert parsed is not None
        return parsed

    def test_everything_a_proxy_needs(self):
        obj = slice_(
            endpoints=[
                endpoint(
                    "10.244.0.1", nodeName="n1", hints={"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}
                ),
                endpoint("10.244.0.2", conditions={"ready": False, "serving": True, "terminating": True}),
            ],
            ports=[{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        )
        obj["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:01:00Z"}
        parsed = parse_slice(obj)
        assert parsed is not None
        assert (parsed.namespace, parsed.name, parsed.family) == ("default", "web-1", 4)
        assert parsed.service == ServiceName("default", "web")
        assert parsed.ports == (SlicePort("http", Protocol.TCP, 8080), SlicePort("dns", Protocol.UDP, 53))
        assert parsed.endpoints == (
            Endpoint(v4("10.244.0.1"), node_name="n1", zone_hints=("a",), node_hints=("n1",)),
            Endpoint(v4("10.244.0.2"), ready=False, serving=True, terminating=True),
        )
        assert parsed.trigger_time == 60.0

    def test_ipv6(self):
        parsed = self.parse(addressType="IPv6", endpoints=[endpoint("fd00::1"), endpoint("64:ff9b::1")])
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
    def test_conditions_that_are_nil(self, conditions, expected):
        (parsed,) = self.parse(endpoints=[endpoint(conditions=conditions)]).endpoints
        assert (parsed.ready, parsed.serving, parsed.terminating) == expected

    def test_only_the_first_address_counts_and_empty_lists_do_not(self):
        parsed = self.parse(endpoints=[{"addresses": ["10.244.0.1", "nonsense"]}, {"addresses": []}, {}])
        assert [e.address for e in parsed.endpoints] == [v4("10.244.0.1")]

    def test_nil_and_zero_ports_are_ignored(self):
        assert self.parse(ports=[{"name": "a"}, {"name": "b", "port": 0}, {"port": 1}]).ports == (
            SlicePort("", Protocol.TCP, 1),
        )
        assert self.parse(ports=None, endpoints=None).ports == ()

    def test_a_thousand_endpoints_are_admitted_and_share_their_strings(self):
        hints = {"forZones": [{"name": "zone-a"}]}
        wire = json.dumps(
            slice_(endpoints=[endpoint(f"10.0.{i // 250}.{i % 250}", nodeName="n", hints=hints) for i in range(1000)])
        )
        parsed = parse_slice(wire.encode())
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
    def test_what_a_proxy_skips(self, skipped):
        assert parse_slice(skipped) is None

    @pytest.mark.parametrize(
        ("obj", "reason"),
        [
            ({"metadata": {"name": "x"}}, "addressType: field required"),
            (
                slice_(endpoints=[endpoint(), endpoint("fd00::1")]),
                "endpoints[1].addresses[0]: 'fd00::1' is not an IPv4 address",
            ),
            (
                slice_(addressType="IPv6", endpoints=[endpoint("10.0.0.1")]),
                "endpoints[0].addresses[0]: '10.0.0.1' is not an IPv6 address",
            ),
            (
                slice_(addressType="IPv6", endpoints=[endpoint("::ffff:10.0.0.1")]),
                "endpoints[0].addresses[0]: '::ffff:10.0.0.1' is an IPv4 address in IPv6 form",
            ),
            (slice_(endpoints=[endpoint("")]), "endpoints[0].addresses[0]: '' is not an IPv4 address"),
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
    def test_what_is_refused_and_why(self, obj, reason):
        for form in (obj, json.dumps(obj).encode()):
            with pytest.raises(Refusal) as refusal:
                parse_slice(form)
            assert str(refusal.value).startswith(reason)

    @pytest.mark.parametrize(
        ("address_type", "address"),
        [("IPv4", a) for a in ("0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1")]
        + [("IPv6", a) for a in ("::", "::1", "fe80::1", "febf::1", "ff02::1", "ff12::1")],
    )
    def test_addresses_that_nothing_may_be_sent_on_to(self, address_type, address):
        with pytest.raises(Refusal, match=f"{address}' is unspecified, loopback or link-local"):
            parse_slice(slice_(addressType=address_type, endpoints=[endpoint(address)]))

    @pytest.mark.parametrize("address", ["0.0.0.1", "169.253.0.1", "224.0.1.1", "223.0.0.1", "126.0.0.1"])
    def test_neighbours_of_those_addresses_are_ordinary(self, address):
        assert self.parse(endpoints=[endpoint(address)]).endpoints[0].address == v4(address)

    @pytest.mark.parametrize("text", ["", "yesterday", "2024-01-01"])
    def test_an_unreadable_trigger_time_does_no_harm(self, text):
        obj = slice_()
        obj["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
        assert parse_slice(obj) is not None

    def test_trigger_time_in_nanoseconds(self):
        obj = slice_()
        key = "endpoints.kubernetes.io/last-change-trigger-time"
        obj["metadata"]["annotations"] = {key: "1970-01-01T00:00:01.123456789Z"}
        parsed = parse_slice(obj)
        assert parsed is not None
        assert parsed.trigger_time == pytest.approx(1.123456)


class TestNodes:
    def test_everything_a_proxy_needs(self):
        addresses = [
            {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "10.0.0.2"},
        ]
        metadata = {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}}
        parsed = parse_node({"metadata": metadata, "spec": {}, "status": {"addresses": addresses}})
        assert parsed == Node("n1", "a", (v4("10.0.0.1"), v6("2001:db8::1")), eligible=True)

    @pytest.mark.parametrize(
        ("metadata", "taints", "eligible"),
        [
            ({}, None, True),
            ({}, [{"key": "node.kubernetes.io/not-ready"}], True),
            ({}, [{"key": "ToBeDeletedByClusterAutoscaler"}], False),
            ({"deletionTimestamp": "2024-01-01T00:00:00Z"}, None, False),
        ],
    )
    def test_a_node_on_its_way_out_is_not_eligible(self, metadata, taints, eligible):
        assert parse_node({"metadata": {"name": "n1", **metadata}, "spec": {"taints": taints}}).eligible is eligible
