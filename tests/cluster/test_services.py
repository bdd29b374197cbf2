"""Services with selectors: pods come and go, the EndpointSlice controller works, the client sees the outcome."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager

import pytest
from kube_world import DNS, PORTS, Service

from kproxy_ebpf.lab.control_plane import object_path
from kproxy_ebpf.lab.traffic import Load, ask, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

FOREIGN = {"service.kubernetes.io/service-proxy-name": "another"}


def names(pods):
    return {pod.name for pod in pods}


def test_connections_reach_the_pods_on_both_nodes(world, family):
    app = f"spread{family}"
    pods = [*world.pods(app, 2), world.pod(app, node="node2")]
    service = world.service(app)
    service.wait_for(names(pods), family)
    answer = ask(world.client, service.vip(family), 80)
    assert answer.client == world.client.address(family)


def test_every_port_of_a_service_works(world, family):
    pod = world.pod(f"ports{family}")
    service = world.service(f"ports{family}")
    service.wait_for(names([pod]), family)
    assert service.ask(family, 53, Protocol.UDP) == pod.name
    with pytest.raises(ConnectionRefusedError):
        service.ask(family, 81)


def test_a_named_port_is_the_number_that_each_pod_gives_it(world, family):
    app = f"named{family}"
    pods = [world.pod(app, web=8080), world.pod(app, web=9090)]
    world.service(app).wait_for(names(pods), family)


def test_a_service_without_pods_refuses_until_one_comes(world, family):
    service = world.service(f"late{family}")
    service.wait_for([], family)
    pod = world.pod(f"late{family}")
    service.wait_for(names([pod]), family)


def test_pods_come_and_go_without_a_failed_connection(world, family):
    app = f"rolling{family}"
    pods = world.pods(app, 2)
    service = world.service(app)
    service.wait_for(names(pods), family)
    load = Load(world.client, service.vip(family), 80)
    for _ in range(3):
        pods.append(world.pod(app))
        service.wait_for(names(pods), family)
        leaver = pods.pop(0)
        world.delete(leaver)
        service.wait_for(names(pods), family)
        world.end(leaver)
    load.stop()
    assert not load.failures
    assert set(load.answers) >= names(pods)


def test_a_pod_that_is_not_ready_gets_no_new_connections(world):
    pods = world.pods("probe", 2)
    service = world.service("probe")
    service.wait_for(names(pods))
    world.set_ready(pods[0], False)
    service.wait_for(names(pods[1:]))
    world.set_ready(pods[0], True)
    service.wait_for(names(pods))


def test_a_terminating_pod_keeps_its_connections_until_it_is_gone(world, family):
    app = f"grace{family}"
    leaver, stayer = world.pods(app, 2)
    service = world.service(app)
    service.wait_for(names([leaver, stayer]), family)

    with connection_to(leaver, world, service, family) as connection:
        world.delete(leaver, grace_seconds=60)
        service.wait_for(names([stayer]), family)
        echo(connection, b"still here")

        world.delete(leaver)
        until(lambda: _is_reset(connection), "the end of the connection")


@contextmanager
def connection_to(pod, world, service, family):
    """A connection through the VIP that this pod has taken."""
    while True:
        with opened(world.client, service.vip(family), 80) as connection:
            if read_answer(connection, 0).server == pod.name:
                yield connection
                return


def _is_reset(connection: socket.socket) -> bool:
    """By a RST at the link, or by the daemon that ended the socket (ECONNABORTED, then EPIPE)."""
    try:
        echo(connection, b"?")
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        return True
    return False


@pytest.mark.parametrize(
    ("labels", "spec"),
    [
        ({}, {"clusterIP": "None"}),
        (FOREIGN, {}),
        ({}, {"type": "ExternalName", "externalName": "example.test", "selector": None, "ipFamilyPolicy": None}),
    ],
    ids=["headless", "another proxy's", "ExternalName"],
)
def test_what_is_not_ours_is_skipped(world, labels, spec):
    skipped = world.service("skipped", labels=labels, **spec)
    served = world.service("skipped")
    until(lambda: f"default/{served.name}" in world.served(), "the later Service to be served")
    assert f"default/{skipped.name}" not in world.served()


def test_a_service_that_another_proxy_takes_over_is_let_go(world):
    pod = world.pod("handover")
    service = world.service("handover")
    service.wait_for(names([pod]))
    world.control.api("PATCH", object_path("Service", service.name), {"metadata": {"labels": FOREIGN}})
    until(lambda: f"default/{service.name}" not in world.served(), "the Service to leave the tables")


def test_a_deleted_service_stops_answering(world, family):
    pod = world.pod(f"deleted{family}")
    service = world.service(f"deleted{family}")
    service.wait_for(names([pod]), family)
    world.control.api("DELETE", object_path("Service", service.name))
    until(lambda: _is_unreachable(service, family), "the VIP to be nobody's")


def _is_unreachable(service, family) -> bool:
    try:
        service.ask(family)
    except OSError as error:
        return "unreachable" in str(error) or "No route" in str(error)
    return False


def test_several_slices_that_somebody_wrote_by_hand(world):
    pods = world.pods("handmade", 2)
    service = world.service("nobody", [PORTS[1] | {"targetPort": DNS}], selector=None)
    for pod in pods:
        world.control.api("POST", object_path("EndpointSlice"), _slice(service.name, pod))
    until(
        lambda: {service.ask(4, 53, Protocol.UDP) for _ in range(30)} == names(pods),
        "both slices to be in force",
    )


def _slice(service, pod):
    return {
        "metadata": {"name": f"{service}-{pod.name}", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "dns", "port": DNS, "protocol": "UDP"}],
        "endpoints": [{"addresses": [pod.ip4], "conditions": {"ready": True}}],
    }


def test_a_service_that_is_made_anew_with_other_addresses_and_another_type(world):
    """Same name, same selector; an endpoint of both keeps the connections of the first."""
    pod = world.pod("anew")
    before = world.service("anew")
    before.wait_for(names([pod]))
    path = object_path("Service", before.name)
    with opened(world.client, before.vip(4), 80) as connection:
        read_answer(connection, 0)
        world.control.api("DELETE", path)
        spec = {"selector": {"app": "anew"}, "ports": list(PORTS), "type": "NodePort", "ipFamilies": ["IPv6"]}
        made = world.control.api("POST", object_path("Service"), {"metadata": {"name": before.name}, "spec": spec})
        after = Service(world, before.name, {6: made["spec"]["clusterIP"]})
        after.wait_for(names([pod]), 6)
        for family in {4, 6} - ({6} if after.vip(6) == before.vip(6) else set()):
            until(lambda family=family: _is_unreachable(before, family), f"the old IPv{family} address to be nobody's")
        echo(connection, b"still here")


def test_of_two_services_with_one_external_address_the_older_has_it_and_the_other_an_event(world):
    address, apps = "192.0.2.99", ("elder", "younger")
    pods = [world.pod(app) for app in apps]
    services = []
    for app, pod in zip(apps, pods, strict=True):
        services.append(world.service(app, externalIPs=[address]))
        services[-1].wait_for(names([pod]))
        time.sleep(1)  # creationTimestamp counts seconds
    elder, younger = services
    assert {ask(world.client, address, 80).server for _ in range(10)} == names(pods[:1])

    def told():
        listed = world.control.api("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        of_younger = [event for event in listed if event["regarding"].get("name") == younger.name]
        return [event for event in of_younger if event["reason"] == "FrontendTaken"]

    event = until(told, "an Event about the younger one")[0]
    assert (event["type"], event["regarding"]["kind"]) == ("Warning", "Service")
    assert address in event["note"]
    assert elder.name in event["note"]
    world.control.api("DELETE", object_path("Service", elder.name))
    until(lambda: ask(world.client, address, 80).server == pods[1].name, "the younger one to take over")


def test_the_time_from_a_change_to_the_tables_is_measured(world):
    """From the annotation that the EndpointSlice controller gives."""

    def measured():
        return world.daemon.metrics()["kubeproxy_network_programming_duration_seconds_count"]

    before = measured()
    pod = world.pod("measured")
    world.service("measured").wait_for(names([pod]))
    until(lambda: measured() > before, "the change to be measured")
