"""One daemon and its node: what it refuses, what it reports, and how it is taken away."""

from __future__ import annotations

import os
import subprocess
import threading
from functools import partial

import pytest
import yaml

from kproxy_ebpf.lab.daemon import COMMAND
from kproxy_ebpf.lab.traffic import ask, opened, read_answer
from kproxy_ebpf.lab.wait import until

GOOD_PORTS = "ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080}]"

# What is wrong, the manifest, and a word that the message must hold.
BAD_MANIFESTS = [
    (
        "wrong-type",
        f"spec: {{clusterIP: 10.96.9.1, clusterIPs: [10.96.9.1], {GOOD_PORTS.replace('80,', 'eighty,')}}}",
        "port",
    ),
    ("missing-port", "spec: {clusterIP: 10.96.9.2, clusterIPs: [10.96.9.2], ports: [{name: http}]}", "port"),
    ("bad-protocol", f"spec: {{clusterIP: 10.96.9.3, {GOOD_PORTS.replace('TCP', 'ICMP')}}}", "protocol"),
    ("bad-address", f"spec: {{clusterIP: 10.96.9.300, {GOOD_PORTS}}}", "10.96.9.300"),
]


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


@pytest.mark.parametrize(("name", "text", "word"), BAD_MANIFESTS, ids=[case[0] for case in BAD_MANIFESTS])
def test_a_bad_service_is_refused_by_name_and_others_work(world, service, name, text, word):
    manifest = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n{text}\n"
    refused_and_forgiven(world, name, manifest, word)


def test_an_ipv6_address_in_an_ipv4_slice_is_refused_by_name(world, service):
    name = "mixed-families"
    manifest = (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
        f"metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: some}}}}\n"
        "endpoints: [{addresses: ['fd00::1']}]\nports: [{name: http, port: 80, protocol: TCP}]\n"
    )
    refused_and_forgiven(world, name, manifest, "fd00::1")


def test_too_many_endpoints_in_a_slice_are_refused_by_name(world, service):
    name = "crowded"
    endpoints = ", ".join(f"{{addresses: [10.1.{number // 250}.{number % 250 + 1}]}}" for number in range(1001))
    manifest = (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
        f"metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: some}}}}\n"
        f"endpoints: [{endpoints}]\nports: [{{name: http, port: 80, protocol: TCP}}]\n"
    )
    refused_and_forgiven(world, name, manifest, "100")


def refused_and_forgiven(world, name, manifest, word):
    """The object is named with its reason in log, metric and `status` while it is there, and only then."""
    daemon = world.daemon
    daemon.manifests.write(name, manifest)
    lines = until(
        lambda: [line for line in daemon.log().splitlines() if name in line and word in line], "the log to name it"
    )
    assert lines
    until(lambda: refused_count(daemon) == 1, "the metric to count it")
    assert name in daemon.command("status").stdout
    good = world.service(world.webs[:1])
    assert ask(world.client, good.vip(4), 80).server == "web1"
    daemon.manifests.remove(name)
    until(lambda: refused_count(daemon) == 0, "the metric to forget it")


def refused_count(daemon):
    return sum(value for name, value in daemon.metrics().items() if name.startswith("kproxy_ebpf_refused_objects"))


def test_a_file_that_is_no_yaml_is_refused_by_name(world, service):
    refused_and_forgiven(world, "no-yaml", "{{{ this: is: not yaml", "yaml")


def test_a_second_daemon_on_the_node_is_refused(world):
    daemon = world.daemon
    done = daemon.node.run([*daemon.arguments(), "--health-address", ":20356"], check=False)
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert "already runs" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert daemon.healthz()[0] == 200


def test_the_commands_show_what_is_in_force(world, service, family):
    daemon = world.daemon
    with opened(world.client, service.vip(family), 80) as handle:
        read_answer(handle, 0)
        assert service.name in daemon.command("services").stdout
        assert world.webs[0].address(family) in daemon.command("backends").stdout
        flows = daemon.command("flows").stdout
        assert service.vip(family) in flows
        assert world.client.address(family) in flows
        for name in ("services", "backends", "flows"):
            assert daemon.json(name), name


def test_verdicts_are_counted(world, service, family):
    def counted():
        metrics = world.daemon.metrics()
        return {name: value for name, value in metrics.items() if name.startswith("kproxy_ebpf_verdicts_total")}

    before = counted()
    for _ in range(10):
        ask(world.client, service.vip(family), 80)
    after = counted()
    balanced = [name for name in after if "balanced" in name.lower()]
    assert len(balanced) == 1
    assert after[balanced[0]] - before[balanced[0]] == 10


def test_the_host_tracks_no_connection_of_ours(world, service):
    node = world.node
    count = partial(node.read_sysctl, "netfilter/nf_conntrack_count")
    for _ in range(20):
        ask(world.client, service.vip(4), 80)
    assert count() == "0"
    rules = (
        "add table inet t; add chain inet t c {type filter hook forward priority 0;}; add rule inet t c ct state new"
    )
    node.run(["nft", rules])
    try:  # the counter would tell: with a rule that asks for tracking there are entries, of client and backend
        ask(world.client, service.vip(4), 80)
        assert count() != "0"
    finally:
        node.run(["nft", "delete table inet t"])


def test_of_two_services_with_one_vip_the_older_is_served_and_the_conflict_named(world):
    daemon = world.daemon
    first = world.service(world.webs[:1], name="first")
    manifest = yaml.safe_load(daemon.manifests.folder.joinpath("service-first.yaml").read_text())
    manifest["metadata"] |= {"name": "second", "creationTimestamp": "2026-01-01T00:00:00Z"}
    original = yaml.safe_load(daemon.manifests.folder.joinpath("service-first.yaml").read_text())
    original["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    daemon.manifests.write("service-first", original)
    daemon.manifests.write("service-second", manifest)
    daemon.manifests.endpoints("second", [world.webs[1].ip4, world.webs[1].ip6])
    until(lambda: "default/second" in str(daemon.json("status")["daemon"]["conflicts"]), "status to name the loser")
    assert {ask(world.client, first.vip4, 80).server for _ in range(10)} == {"web1"}
    daemon.manifests.remove_service("first")
    until(lambda: ask(world.client, first.vip4, 80).server == "web2", "the younger one to take over")
    daemon.manifests.remove_service("second")


def test_monitor_shows_a_connection_as_it_happens(world, service, family):
    daemon = world.daemon
    arguments = [COMMAND, "monitor", "--bpffs", daemon.bpffs, "-o", "json"]
    process = world.node.popen(arguments, stdout=subprocess.PIPE)
    try:
        seen = threading.Event()
        client = world.client.address(family)

        def read():
            for line in process.stdout:
                if client in line and service.vip(family) in line and "balanced" in line:
                    seen.set()
                    return

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: ask(world.client, service.vip(family), 80) and seen.wait(0.1), "an event of a connection")
        reader.join()
    finally:
        world.node.end(process)
