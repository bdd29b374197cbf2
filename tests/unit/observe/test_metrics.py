"""Names and buckets that dashboards of kube-proxy rely on."""

from kproxy_ebpf.observe.metrics import PROGRAMMING_BUCKETS, SYNC_BUCKETS, Metrics

KUBE_PROXY_NAMES = {
    "kubeproxy_sync_proxy_rules_duration_seconds_count",
    "kubeproxy_network_programming_duration_seconds_count",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
}


def test_kube_proxys_names_are_kept() -> None:
    samples = {sample.name for metric in Metrics().registry.collect() for sample in metric.samples}
    assert samples >= KUBE_PROXY_NAMES


def test_kube_proxys_buckets_are_kept() -> None:
    assert SYNC_BUCKETS[0] == 0.001
    assert SYNC_BUCKETS[-1] == 16.384
    assert len(PROGRAMMING_BUCKETS) == 1 + 2 + 59 + 12 + 7
    assert PROGRAMMING_BUCKETS[-1] == 300
    assert list(PROGRAMMING_BUCKETS) == sorted(set(PROGRAMMING_BUCKETS))


def test_two_daemons_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.sync_failures.inc()
    assert second.registry.get_sample_value("kproxy_ebpf_sync_failures_total") == 0
