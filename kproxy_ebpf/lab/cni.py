"""Pods that real CNI plugins wire: what a container runtime does with a list of plugins, on one node of the lab.

The rules are those of the CNI specification, and of libcni where it is silent: ADD goes through the list in order, each
plugin gets the result of the one before; DEL goes back, and each plugin gets the whole result of ADD.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kproxy_ebpf.lab import netns
from kproxy_ebpf.lab.netns import Namespace
from kproxy_ebpf.lab.sysctls import QUICK

if TYPE_CHECKING:
    from kproxy_ebpf.lab.cluster import Node, Pod

PLUGINS = (Path("/usr/lib/cni"), Path(__file__).parents[2] / "cni")
"""Debian's plugins, and ours in a checkout."""

IFNAME = "eth0"


class PluginError(Exception):
    """A plugin's answer that is an error; `code` is the specification's."""

    def __init__(self, plugin: str, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{plugin}: {answer.get('msg')} ({answer.get('details')})")
        self.code = int(answer["code"])


class CniPod(Namespace):
    """A pod without links, until a runtime adds them. `ip4` and `ip6` are then its addresses."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(f"{node.netns}-{name}", name, QUICK, node.cgroup)
        self.ip("link set lo up")
        self.ip4 = self.ip6 = ""

    def address(self, family: int) -> str:
        return {4: self.ip4, 6: self.ip6}[family]

    def remove(self) -> None:
        """End its processes, and delete its namespace."""
        self.close()
        netns.delete([self.netns])


class Runtime:
    """Calls the plugins of a list on a node, as a process in the node's network namespace.

    `offered` has the values of capabilities, for plugins that ask for them: `ips`, `portMappings` and others.
    """

    def __init__(
        self,
        node: Node,
        conflist: Mapping[str, Any],
        path: Sequence[Path] = PLUGINS,
        offered: Mapping[str, Any] | None = None,
    ) -> None:
        self.node = node
        self.offered = offered or {}
        self.conflist = conflist
        self.path = path
        self._cache: dict[tuple[str, str], str] = {}

    def add(self, pod: CniPod | Pod, ifname: str = IFNAME) -> dict[str, Any]:
        """Wire the pod; the last plugin's result. Raises PluginError; then the runtime is to call `delete`."""
        result = ""
        for plugin in self.conflist["plugins"]:
            result = self.call("ADD", plugin, pod, ifname, result)
        self._cache[pod.netns, ifname] = result
        answer: dict[str, Any] = json.loads(result)
        for address in (entry["address"].partition("/")[0] for entry in answer["ips"]):
            setattr(pod, "ip6" if ":" in address else "ip4", address)
        return answer

    def check(self, pod: CniPod, ifname: str = IFNAME) -> None:
        """Raises PluginError."""
        for plugin in self.conflist["plugins"]:
            self.call("CHECK", plugin, pod, ifname, self._cache[pod.netns, ifname])

    def delete(self, pod: CniPod | Pod, ifname: str = IFNAME) -> None:
        """Raises PluginError."""
        result = self._cache.pop((pod.netns, ifname), "")
        for plugin in reversed(self.conflist["plugins"]):
            self.call("DEL", plugin, pod, ifname, result)

    def call(
        self,
        command: str,
        plugin: Mapping[str, Any],
        pod: CniPod | Pod | None,
        ifname: str = IFNAME,
        result: str = "",
    ) -> str:
        """What one plugin prints; without a pod for STATUS, GC and VERSION. Raises PluginError."""
        config = {"cniVersion": self.conflist["cniVersion"], "name": self.conflist["name"], **plugin}
        if asked := config.pop("capabilities", {}):
            config["runtimeConfig"] = {key: self.offered[key] for key in asked if key in self.offered}
        text = json.dumps(config)
        if result:  # as text: the plugin gets what another one has written, byte for byte
            text = f'{text[:-1]}, "prevResult": {result}}}'
        environment = {**os.environ, "CNI_COMMAND": command, "CNI_PATH": ":".join(map(str, self.path))}
        if pod is not None:
            environment |= {"CNI_CONTAINERID": pod.netns, "CNI_NETNS": str(pod.path), "CNI_IFNAME": ifname}
        program = self._found(plugin["type"])
        with self.node.inside():  # no process but the plugin: what takes time here is measured
            done = subprocess.run([program], check=False, env=environment, input=text, capture_output=True, text=True)
        if done.stderr:
            raise RuntimeError(f"{plugin['type']} {command}: {done.stderr}")
        if done.returncode != 0:
            raise PluginError(plugin["type"], json.loads(done.stdout))
        return done.stdout

    def _found(self, name: str) -> Path:
        return next(folder / name for folder in self.path if (folder / name).exists())


def ipam(node: Node, folder: Path, first: int, last: int) -> dict[str, Any]:
    """host-local, with a part of the node's networks that the lab's own pods don't take; `folder` keeps its leases."""

    def of_family(cidr: Any) -> Iterable[dict[str, str]]:
        return [{"subnet": str(cidr), "rangeStart": str(cidr[first]), "rangeEnd": str(cidr[last])}]

    return {
        "type": "host-local",
        "dataDir": str(folder),
        "ranges": [of_family(node.pod_cidr4), of_family(node.pod_cidr6)],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
