"""A cluster of network namespaces on one machine: used by the demo, the tests and the bench."""

from kproxy_ebpf.lab.cluster import CLUSTER_CIDRS, Cni, Lab, Node, Pod, Underlay
from kproxy_ebpf.lab.netns import Namespace

__all__ = ["CLUSTER_CIDRS", "Cni", "Lab", "Namespace", "Node", "Pod", "Underlay"]
