"""An API server that goes away, forgets, or no longer knows the daemon. The datapath goes on meanwhile."""

from __future__ import annotations

import json
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
from kube_world import MANIFESTS, NAME, NAMESPACE

from kproxy_ebpf.lab.control_plane import ETCD_PORT, object_path
from kproxy_ebpf.lab.traffic import Load, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

BACK_SECONDS = 60  # back-off ends at 30 s


@pytest.fixture
def served(world, request):
    """A Service with two pods, in force."""
    app = request.node.name.replace("_", "-")[:40]
    pods = world.pods(app, 2)
    service = world.service(app)
    names = {pod.name for pod in pods}
    service.wait_for(names)
    return app, service, names


@contextmanager
def without_api_server(world):
    """The controllers are started anew afterwards: their own back-off of half a minute is not what is tested."""
    world.control.stop("kube-controller-manager")
    world.control.stop("kube-apiserver")
    try:
        yield
    finally:
        world.control.start_api()
        world.control.start_controllers()


def log_of(world, since=0):
    return world.daemon.log()[since:]


def test_the_state_is_streamed_where_the_server_can(world):
    """WatchList: no list request of the daemon was ever counted."""
    metrics = world.control.api("GET", "/metrics")
    counted = [line for line in metrics.splitlines() if line.startswith("apiserver_watch_list_duration_seconds_count")]
    assert any('resource="endpointslices"' in line for line in counted)
    assert any('resource="services"' in line for line in counted)
    assert "using lists" not in log_of(world)


def test_the_datapath_goes_on_without_an_api_server_and_is_right_afterwards(world, served):
    app, service, names = served
    with opened(world.client, service.vip(4), 80) as connection:
        read_answer(connection, 0)
        load = Load(world.client, service.vip(4), 80)
        with without_api_server(world):
            until(lambda: "trying again" in log_of(world), "the daemon to notice")
            load.go_on(100)
            echo(connection, b"still here")
            assert world.daemon.healthz()[0] == 200
        names.add(world.pod(app).name)
        service.wait_for(names, seconds=BACK_SECONDS)
        load.stop()
        echo(connection, b"still here")
    assert not load.failures


def test_a_daemon_that_starts_without_an_api_server_serves_what_it_knew(world, served):
    app, service, names = served
    with without_api_server(world):
        world.daemon.kill()
        world.daemon.launch()
        service.wait_for(names)
    world.daemon.wait_ready(BACK_SECONDS)
    names.add(world.pod(app).name)
    service.wait_for(names, seconds=BACK_SECONDS)


def compact(world):
    """Make etcd forget all but the present, as the API server has it do every few minutes."""
    with world.control.place.inside():
        connection = HTTPConnection("127.0.0.1", ETCD_PORT, timeout=5)
        connection.connect()
    try:
        revision = json.loads(_post(connection, "/v3/kv/range", {"key": "AA=="}))["header"]["revision"]
        _post(connection, "/v3/kv/compaction", {"revision": revision, "physical": True})
    finally:
        connection.close()


def _post(connection, path, body):
    connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    return text


def test_a_history_that_is_forgotten_is_started_over(world, served):
    """Cut off while pods change, the daemon comes back with a version that nobody remembers, and is told 410."""
    app, service, names = served
    before = len(world.daemon.log())
    world.lab.net.ip("link set node1 down")
    try:
        gone = next(iter(names))
        names.remove(gone)
        world.control.api("DELETE", object_path("Pod", gone), {"gracePeriodSeconds": 0})
        names.add(world.pod(app).name)
        with without_api_server(world):
            compact(world)
    finally:
        world.lab.net.ip("link set node1 up")
    service.wait_for(names, seconds=BACK_SECONDS)
    # A slice that was on its way when the server went may still arrive: then the watch of another kind is told.
    until(lambda: "what was watched is too old" in log_of(world, before), "410 to be told", seconds=BACK_SECONDS)


def test_a_new_token_is_taken_up_while_it_runs(world, served):
    """The account is made anew, which voids every token of the old one; the kubelet would then write a new file."""
    app, service, names = served
    before = len(world.daemon.log())
    world.control.kubectl("delete", "serviceaccount", NAME, f"--namespace={NAMESPACE}")
    world.control.kubectl("apply", "--server-side", "--kustomize", str(MANIFESTS))
    with without_api_server(world):  # ends the connections that the old token opened
        pass
    until(lambda: "Unauthorized" in log_of(world, before), "the old token to be refused", seconds=BACK_SECONDS)
    service.wait_for(names)
    world.daemon.rotate_token()
    names.add(world.pod(app).name)
    service.wait_for(names, seconds=BACK_SECONDS)


def patch_settings(world, **data):
    path = object_path("ConfigMap", NAME, NAMESPACE)
    world.control.api("PATCH", path, {"data": {key.replace("_", "-"): value for key, value in data.items()}})


def test_settings_follow_the_config_map(world, served):
    _, service, names = served
    patch_settings(world, mode="off")
    until(lambda: not answers(service), "new connections to be left alone", seconds=5)
    patch_settings(world, mode="hybrid")
    until(lambda: answers(service), "new connections to be served again", seconds=5)
    service.wait_for(names)


def answers(service):
    try:
        return bool(service.ask())
    except OSError:
        return False


def test_a_bad_setting_is_reported_and_changes_nothing(world, served):
    _, service, names = served
    patch_settings(world, mode="sideways")
    try:
        until(lambda: "sideways" in json.dumps(world.daemon.healthz()[1]), "/healthz to name the value")
        until(lambda: "sideways" in str(events(world)), "an Event")
        service.wait_for(names)
    finally:
        patch_settings(world, mode="hybrid")
    until(lambda: "sideways" not in json.dumps(world.daemon.healthz()[1]), "the problem to be over")


def events(world):
    return [event["note"] for event in world.control.api("GET", "/apis/events.k8s.io/v1/events")["items"]]
