"""`explain` and `trace`: why a Service leads where it leads, where a packet would go, and that nothing stays behind."""

from __future__ import annotations

import json
import os

import pytest
from worlds import UDP_PORT

from kproxy_ebpf.lab.daemon import COMMAND
from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import ask, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

TERMINATING = "terminating, while ready endpoints exist"
OTHER_NODE = "not on this node, under traffic policy Local"


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def explain(world, name):
    return world.node.run([COMMAND, "explain", f"default/{name}"]).stdout


def explain_json(world, name):
    return json.loads(world.node.run([COMMAND, "explain", f"default/{name}", "-o", "json"]).stdout)


def explained(world, service, address):
    """The frontend at `address`:80/TCP, and its endpoints: text to what left it out."""
    frontends = explain_json(world, service.name)["frontends"]
    (frontend,) = [each for each in frontends if (each["address"], each["port"]) == (address, 80)]
    return frontend, {each["endpoint"]: each["left_out"] for each in frontend["endpoints"]}


def at(address, port=8080):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def trace(world, service, family, port=80, protocol="tcp"):
    return world.daemon.json("trace", world.client.address(family), f"{at(service.vip(family), port)}/{protocol}")


def test_explain_names_the_rule_for_each_endpoint(world, family):
    ready, unready, draining = (web.address(family) for web in world.webs)
    members = [
        EndpointSpec(ready),
        EndpointSpec(unready, ready=False),
        EndpointSpec(draining, ready=False, serving=True, terminating=True),
    ]
    service = world.service(members, wait=False)
    until(lambda: ask(world.client, service.vip(family), 80), "the Service to be in force")
    frontend, left_out = explained(world, service, service.vip(family))
    assert (frontend["kind"], frontend["rule"], frontend["verdict"]) == ("ClusterIP", "all ready endpoints", "balance")
    assert left_out == {at(ready): None, at(unready): "not ready", at(draining): TERMINATING}
    (line,) = [line for line in explain(world, service.name).splitlines() if at(draining) in line]
    assert f"{at(service.vip(family), 80)}/TCP" in line
    assert TERMINATING in line


def test_explain_and_trace_agree_with_what_a_policy_drops(world, family):
    far = world.lab.nodes["node2"].pods["far"].address(family)
    service = world.service([EndpointSpec(far, node_name="node2")], wait=False, internalTrafficPolicy="Local")
    until(lambda: trace(world, service, family)["verdict"] == "dropped_traffic_policy", "the policy to drop")
    frontend, left_out = explained(world, service, service.vip(family))
    assert frontend["verdict"] == "drop"
    assert left_out == {at(far): OTHER_NODE}
    with pytest.raises(TimeoutError):
        ask(world.client, service.vip(family), 80, timeout=0.3)


def test_explain_tells_of_an_older_service_that_has_the_frontend(world):
    older, younger = (world.service(world.webs[:1], name=name) for name in ("contended-a", "contended-b"))
    for service in (older, younger):  # by name, since manifests have no creation time
        world.daemon.manifests.service(service.name, [service.vip(4)], externalIPs=["192.0.2.77"])
    held = until(
        lambda: explained(world, younger, "192.0.2.77")[0]["held_by"] if has_external(world, younger) else None,
        "the conflict to be seen",
    )
    assert held == "default/contended-a"
    assert "claimed by default/contended-a too" in explain(world, "contended-b")
    assert explained(world, older, "192.0.2.77")[0]["held_by"] is None
    younger.remove()
    older.remove()


def has_external(world, service):
    frontends = explain_json(world, service.name)["frontends"]
    return any(each["kind"] == "ExternalIP" for each in frontends)


def test_explain_of_a_refused_service_gives_the_reason(world):
    manifest = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: crooked, namespace: default}\n"
        "spec: {clusterIP: 10.96.9.300, ports: [{port: 80}]}\n"
    )
    world.daemon.manifests.write("crooked", manifest)
    try:
        until(lambda: "crooked" in world.daemon.command("status").stdout, "the refusal to be seen")
        assert "10.96.9.300" in explain(world, "crooked")
        assert explain_json(world, "crooked")["state"] == "refused"
    finally:
        world.daemon.manifests.remove("crooked")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["explain", "default/nobody"], os.EX_NOINPUT, "there is no Service default/nobody"),
        (["explain", "nobody"], os.EX_USAGE, "NAMESPACE/NAME"),
        (["explain", "a/b", "--metrics-address", "127.0.0.1:1"], os.EX_UNAVAILABLE, "no daemon answers on 127.0.0.1:1"),
        (["trace", "10.0.0.1", "10.0.0.2/tcp"], os.EX_USAGE, "has no port"),
    ],
)
def test_what_can_not_be_answered_is_one_sentence(world, words, code, sentence):
    done = world.node.run([COMMAND, *words], check=False)
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_trace_names_frontend_rule_backend_and_verdict(world, service, family):
    report = trace(world, service, family)
    assert report["verdict"] == "balanced"
    assert report["frontend"] == f"{at(service.vip(family), 80)}/TCP"
    assert report["service"] == f"default/{service.name}:http"
    assert report["rule"] == "all ready endpoints"
    assert report["backend"]["endpoint"] in {at(web.address(family)) for web in world.webs}
    assert report["becomes"]["destination"] == report["backend"]["endpoint"]
    lines = world.daemon.command("trace", world.client.address(family), f"{at(service.vip(family), 80)}/tcp").stdout
    assert f"{at(service.vip(family), 80)}/TCP of default/{service.name}:http" in lines
    assert "balanced: translated" in lines


def test_trace_describes_refusals(world, service, family):
    reset = trace(world, service, family, 4711)
    assert (reset["verdict"], reset["answer"]) == ("rejected_undefined_port", "TCP RST")
    assert reset["service"].startswith(f"default/{service.name}")
    assert reset["rule"] == "ports that the Service does not define: rejected"
    empty = world.service([])
    unreachable = trace(world, empty, family, UDP_PORT, "udp")
    assert (unreachable["verdict"], unreachable["answer"]) == ("rejected_no_backend", "ICMP port unreachable")


def test_trace_of_an_address_that_is_no_vip(world, service, family):
    address = world.webs[0].address(family)
    report = world.daemon.json("trace", world.client.address(family), f"{at(address)}/tcp")
    assert (report["verdict"], report["frontend"], report["becomes"]) == ("untouched", None, None)


def test_nothing_stays_behind_a_trace_and_nothing_is_sent(world, family):
    service = world.service(world.webs, sessionAffinity="ClientIP")
    vip, client = service.vip(family), world.client
    with opened(client, vip, 80) as connection:
        server = read_answer(connection, 0).server

        def mine():
            return {
                (flow["client"], flow["backend"]) for flow in world.daemon.json("flows") if at(vip, 80) == flow["vip"]
            }

        before = mine()
        traced = {trace(world, service, family)["backend"]["endpoint"] for _ in range(3)}
        assert traced == {at(world.node.pods[server].address(family))}  # affinity holds
        assert mine() == before
        echo(connection, b"undisturbed")
        taken = world.node.run(
            [
                *(COMMAND, "trace", "--bpffs", world.daemon.bpffs),
                *(at(client.address(family), connection.getsockname()[1]), f"{at(vip, 80)}/tcp"),
            ],
            check=False,
        )
        assert taken.returncode == os.EX_USAGE
        assert "belongs to a connection of this pod" in taken.stderr
        echo(connection, b"still undisturbed")


def test_trace_works_without_the_daemon_and_explain_says_that_it_is_gone(world, service):
    world.daemon.stop()
    try:
        report = trace(world, service, 4)
        assert (report["verdict"], report["rule"]) == ("balanced", None)
        assert report["service"] == f"default/{service.name}:http"
        assert set(report["choices"]) == {at(web.ip4) for web in world.webs}
        lines = world.daemon.command("trace", world.client.ip4, f"{service.vip4}:80/tcp").stdout
        assert "only the daemon could tell" in lines
        gone = world.node.run([COMMAND, "explain", f"default/{service.name}"], check=False)
        assert gone.returncode == os.EX_UNAVAILABLE
        assert "no daemon answers" in gone.stderr
    finally:
        world.daemon.start()
