"""Kubernetes Services for pods, in tc-eBPF: a daemon beside kube-proxy."""

__version__ = "0.1.0"
