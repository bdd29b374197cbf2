"""Which Services count, what is read of them, and what is refused with which words."""

from __future__ import annotations

import json
import re

import pytest
from fake_api import labelled, service, v4, v6

from kproxy_ebpf.kube.addresses import PartialRefusal, Refusal
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.kinds.service import SERVICE
from kproxy_ebpf.model.services import Protocol, ServiceName, ServicePort, SourceRange, TrafficPolicy, packed

US = Scope(proxy_name="us")


def test_everything_a_proxy_needs():
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
    parsed = SERVICE.parse({**obj, "status": {"loadBalancer": {"ingress": ingress}}})
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


def test_bytes_and_null_fields():
    obj = service(externalIPs=None, sessionAffinity=None, clusterIPs=None, internalTrafficPolicy=None)
    assert SERVICE.parse(json.dumps({**obj, "status": None}).encode()) == SERVICE.parse(service())


def test_affinity_defaults_to_three_hours():
    parsed = SERVICE.parse(service(sessionAffinity="ClientIP"))
    assert parsed is not None
    assert parsed.affinity_seconds == 10800


@pytest.mark.parametrize("unknown", ["", "local", "Nearest"])
def test_an_unknown_policy_means_cluster(unknown):
    parsed = SERVICE.parse(service(internalTrafficPolicy=unknown, externalTrafficPolicy=unknown))
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
def test_what_a_proxy_skips(skipped):
    assert SERVICE.parse(skipped) is None


def test_our_own_proxy_name_counts_and_so_does_none():
    ours = labelled(service(), **{"service.kubernetes.io/service-proxy-name": "us"})
    others = labelled(service(), **{"service.kubernetes.io/service-proxy-name": "them"})
    assert SERVICE.parse(ours, US) == SERVICE.parse(service(), US)
    assert SERVICE.parse(others, US) is None


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
        (service(clusterIP="10.96.0.0256"), "spec.clusterIPs[0]: '10.96.0.0256' is not an IP address"),
        (service(clusterIP="10.96.0.0x1"), "spec.clusterIPs[0]: '10.96.0.0x1' is not an IP address"),
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
def test_what_is_refused_and_why(obj, reason):
    for form in (obj, json.dumps(obj).encode()):
        with pytest.raises(Refusal) as refusal:
            SERVICE.parse(form)
        assert str(refusal.value).startswith(reason)


def test_a_reason_is_one_short_line():
    with pytest.raises(Refusal) as refusal:
        SERVICE.parse(service(externalIPs=["\n\x1b[31m" + "x" * 10_000]))
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 200


def test_the_server_selects_unless_we_have_a_proxy_name_of_our_own():
    assert SERVICE.resource(Scope()).query == (("labelSelector", "!service.kubernetes.io/service-proxy-name"),)
    assert SERVICE.resource(US).query == ()


def test_leading_zeros_are_decimal_as_for_kube_proxy():
    parsed = SERVICE.parse(
        service(
            clusterIP="010.096.000.010",
            clusterIPs=["010.096.000.010"],
            externalIPs=["192.000.002.01"],
            loadBalancerSourceRanges=[" 010.0.0.0/08 "],
        )
    )
    assert parsed is not None
    assert parsed.cluster_ips == (v4("10.96.0.10"),)
    assert parsed.external_ips == (v4("192.0.2.1"),)
    assert parsed.source_ranges == (SourceRange(v4("10.0.0.0"), 8),)


NEVER = "127.0.0.1 127.9.8.7 0.0.0.0 169.254.20.10 224.0.0.1 239.1.1.1 255.255.255.255 ::1 :: fe80::1 ff02::1 ff0e::1"


@pytest.mark.parametrize("address", NEVER.split())
def test_an_address_that_is_never_a_frontend_is_left_out_and_told(address: str) -> None:
    """Whoever wrote it (minikube's tunnel writes 127.0.0.1): as a VIP it would take over every pod's loopback."""
    others = {"externalIPs": ["192.0.2.1"]}
    status = {"loadBalancer": {"ingress": [{"ip": address}, {"ip": "192.0.2.2"}]}}
    for obj, field in (
        ({**service(**others), "status": status}, "status.loadBalancer.ingress[0].ip"),
        (service(externalIPs=["192.0.2.1", address]), "spec.externalIPs[1]"),
    ):
        with pytest.raises(
            PartialRefusal, match=re.escape(f"{field}: '{address}' is loopback, unspecified")
        ) as refusal:
            SERVICE.parse(obj)
        left = refusal.value.rest
        assert left.external_ips == (packed("192.0.2.1"),)
        assert left.load_balancer_ips == ((packed("192.0.2.2"),) if "status" in obj else ())


def test_every_address_that_is_never_a_frontend_is_named() -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "0.0.0.0"}, {"ip": "127.0.0.1", "ipMode": "Proxy"}]}}
    with pytest.raises(PartialRefusal) as refusal:
        SERVICE.parse({**service(externalIPs=["::1"]), "status": status})
    assert str(refusal.value).count("it is not served") == 2
