"""A cluster of network namespaces on one machine: used by the demo, the tests and the bench."""

from kproxy_ebpf.lab.cluster import Cni, Lab, Node, Pod
from kproxy_ebpf.lab.netns import Namespace

__all__ = ["Cni", "Lab", "Namespace", "Node", "Pod"]
