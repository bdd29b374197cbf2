"""manifests/ as the API server takes them, and the rights that they give."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from kube_world import MANIFESTS, NAME, NAMESPACE, SERVICE_ACCOUNT

from kproxy_ebpf import __version__
from kproxy_ebpf.cli import COMMANDS
from kproxy_ebpf.cli.run import run as run_command
from kproxy_ebpf.cni.binary import BIN_DIR
from kproxy_ebpf.cni.folder import CONF_DIR
from kproxy_ebpf.config import CniChain, Settings, parse_settings
from kproxy_ebpf.lab.control_plane import object_path
from kproxy_ebpf.lab.wait import until

KUBE_PROXY_PORTS = {10249, 10256}


@pytest.fixture(scope="module")
def applied(control):
    done = control.kubectl("apply", "--server-side", "--kustomize", str(MANIFESTS))
    assert "Warning" not in done.stderr
    return control


@pytest.fixture(scope="module")
def template(applied):
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{NAME}"
    return applied.api("GET", path)["spec"]["template"]["spec"]


def test_every_field_is_one_that_the_api_server_knows(control):
    control.kubectl("apply", "--dry-run=server", "--validate=strict", "--kustomize", str(MANIFESTS))


def test_applying_again_changes_nothing(applied):
    applied.kubectl("diff", "--server-side", "--kustomize", str(MANIFESTS))


@pytest.fixture(params=["a line in manifests/", "an overlay elsewhere"])
def with_component(request, tmp_path):
    """A kustomization with the CNI component, as the two are told in manifests/cni/."""
    if request.param.startswith("a line"):
        folder = Path(shutil.copytree(MANIFESTS, tmp_path / "manifests"))
        text = (folder / "kustomization.yaml").read_text()
        assert "# components: [cni]" in text
        (folder / "kustomization.yaml").write_text(text.replace("# components: [cni]", "components: [cni]"))
        return folder
    base = os.path.relpath(MANIFESTS, tmp_path)
    content = {"resources": [base], "components": [f"{base}/cni"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_the_component_puts_the_plugin_in_place(control, with_component):
    control.kubectl("apply", "--dry-run=server", "--validate=strict", "--kustomize", str(with_component))
    objects = {
        each["kind"]: each for each in yaml.safe_load_all(control.kubectl("kustomize", str(with_component)).stdout)
    }
    assert parse_settings(objects["ConfigMap"]["data"]) == Settings(cni=CniChain.CHAIN)
    spec = objects["DaemonSet"]["spec"]["template"]["spec"]
    (init,), (daemon,) = spec["initContainers"], spec["containers"]
    assert init["args"][0] in COMMANDS
    assert init["image"] == daemon["image"] == f"kproxy-ebpf:{__version__}"
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    defaults = {str(CONF_DIR), str(BIN_DIR)}
    mounts = [
        (m["mountPath"], paths[m["name"]]) for c in (init, daemon) for m in c["volumeMounts"] if "cni" in m["name"]
    ]
    assert {path for path, _ in mounts} == defaults, "where the flags look if nobody says otherwise"
    assert all(path == on_host for path, on_host in mounts)


def test_without_the_component_the_daemon_sees_nothing_of_the_runtimes(template):
    assert "initContainers" not in template
    paths = [volume.get("hostPath", {}).get("path", "") for volume in template["volumes"]]
    assert [path for path in paths if "cni" in path] == []


ALLOWED = [
    *(("list", "", "services", None, ""), ("watch", "", "services", None, "")),
    *(
        ("list", "discovery.k8s.io", "endpointslices", None, ""),
        ("watch", "discovery.k8s.io", "endpointslices", None, ""),
    ),
    *(("get", "", "nodes", None, "node1"), ("list", "", "nodes", None, ""), ("watch", "", "nodes", None, "")),
    *(("create", "events.k8s.io", "events", "default", ""), ("patch", "events.k8s.io", "events", "default", "")),
    *(("get", "", "configmaps", NAMESPACE, NAME), ("watch", "", "configmaps", NAMESPACE, NAME)),
]
DENIED = [
    *(("list", "", "secrets", None, ""), ("get", "", "secrets", NAMESPACE, NAME)),
    *(
        ("list", "", "pods", None, ""),
        ("create", "", "pods", "default", ""),
        ("create", "", "pods/exec", "default", ""),
    ),
    *(("update", "", "services", "default", "web"), ("delete", "", "services", "default", "web")),
    *(("update", "", "services/status", "default", "web"), ("patch", "", "nodes", None, "node1")),
    *(
        ("create", "discovery.k8s.io", "endpointslices", "default", ""),
        ("delete", "events.k8s.io", "events", "default", ""),
    ),
    *(("list", "", "configmaps", NAMESPACE, ""), ("get", "", "configmaps", NAMESPACE, "kube-proxy")),
    *(("get", "", "configmaps", "default", NAME), ("update", "", "configmaps", NAMESPACE, NAME)),
    *(("create", "", "serviceaccounts/token", NAMESPACE, NAME), ("impersonate", "", "users", None, "")),
    *(("create", "rbac.authorization.k8s.io", "clusterrolebindings", None, ""), ("*", "*", "*", None, "")),
]


def may(control, verb, group, resource, namespace, name):
    resource, _, sub = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": resource, "name": name, "subresource": sub}
    if namespace:
        attributes["namespace"] = namespace
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"]
    review = {"spec": {"user": SERVICE_ACCOUNT, "groups": groups, "resourceAttributes": attributes}}
    return control.api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]


@pytest.mark.parametrize("request_", ALLOWED, ids=str)
def test_the_daemon_may(applied, request_):
    until(lambda: may(applied, *request_), "the authorizer to have seen the roles")


@pytest.mark.parametrize("request_", DENIED, ids=str)
def test_the_daemon_may_not(applied, request_):
    assert not may(applied, *request_)


def test_the_settings_are_the_defaults_spelled_out(applied):
    data = applied.api("GET", f"{object_path('ConfigMap', NAME, NAMESPACE)}")["data"]
    assert parse_settings(data) == Settings()
    assert set(data) == set(Settings().plain())


def test_every_variable_is_a_flag_of_run(template):
    known = {option.envvar for option in run_command.params}
    assert {variable["name"] for variable in template["containers"][0]["env"]} <= known


def test_the_image_is_this_version(template):
    assert template["containers"][0]["image"] == f"kproxy-ebpf:{__version__}"


def test_the_ports_are_not_kube_proxys(template):
    (container,) = template["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": 10356, "metrics": 10349}
    assert not KUBE_PROXY_PORTS & set(ports.values())


def test_the_probes_answer_and_a_rolling_update_waits_for_what_is_in_force(world, template):
    (container,) = template["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    port = {port["name"]: port["containerPort"] for port in container["ports"]}["health"]
    assert {path: world.daemon.get(path, port)[0] for path in paths.values()} == {"/livez": 200, "/readyz": 200}


def test_a_pod_comes_to_every_node_whatever_its_taints(world, applied):
    taint = {"spec": {"taints": [{"key": "dedicated", "value": "x", "effect": "NoSchedule"}]}}
    applied.api("PATCH", object_path("Node", "node2"), taint)
    query = f"{object_path('Pod', namespace=NAMESPACE)}?labelSelector=app.kubernetes.io/name={NAME}"
    pods = until(lambda: len(found := applied.api("GET", query)["items"]) == 2 and found, "a pod for each node")
    for pod in pods:
        assert pod["spec"]["priorityClassName"] == "system-node-critical"
        assert not pod["spec"]["containers"][0]["securityContext"].get("privileged")
    applied.api("PATCH", object_path("Node", "node2"), {"spec": {"taints": None}})
