"""Measure what a Service costs: directly, through kproxy-ebpf, and through the real kube-proxy."""
