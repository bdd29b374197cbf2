"""The daemon's metrics: kube-proxy's names where the meaning is the same, so that its dashboards work; else our prefix.

The programs' counters are read from the maps when Prometheus asks (`DatapathCollector`); all others are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kproxy_ebpf import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]  # kube-proxy has none

SYNC_BUCKETS = tuple(0.001 * 2**exponent for exponent in range(15))

PROGRAMMING_BUCKETS = (
    *(0.0, 0.25, 0.5),
    *(float(seconds) for seconds in range(1, 60)),
    *(float(seconds) for seconds in range(60, 120, 5)),
    *(float(seconds) for seconds in range(120, 301, 30)),
)
"""kube-proxy's buckets of the network programming latency: quarter seconds to five minutes."""


class Metrics:
    """Every metric that the daemon keeps itself, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._kube_proxy_metrics()
        self._own_metrics()

    def _kube_proxy_metrics(self) -> None:
        sync = "kubeproxy_sync_proxy_rules_"
        registry = self.registry
        self.sync_duration = Histogram(
            f"{sync}duration_seconds", "Duration of one sync of the tables", registry=registry, buckets=SYNC_BUCKETS
        )
        self.network_programming = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the change in the cluster (last-change-trigger-time) to the tables",
            registry=registry,
            buckets=PROGRAMMING_BUCKETS,
        )
        self.endpoint_changes = Counter(
            f"{sync}endpoint_changes_total", "EndpointSlice changes seen", registry=registry
        )
        self.endpoint_pending = Gauge(
            f"{sync}endpoint_changes_pending", "EndpointSlice changes not yet in the tables", registry=registry
        )
        self.service_changes = Counter(f"{sync}service_changes_total", "Service changes seen", registry=registry)
        self.service_pending = Gauge(
            f"{sync}service_changes_pending", "Service changes not yet in the tables", registry=registry
        )
        self.last_sync = Gauge(f"{sync}last_timestamp_seconds", "When the tables were last synced", registry=registry)
        self.last_queued = Gauge(
            f"{sync}last_queued_timestamp_seconds", "When a sync was last queued", registry=registry
        )
        self.without_local = Gauge(
            f"{sync}no_local_endpoints_total",
            "Frontends that drop: traffic policy Local, and endpoints on other nodes only",
            ["traffic_policy", "ip_family"],
            registry=registry,
        )
        self.healthz = Counter("kubeproxy_proxy_healthz_total", "Answers of /healthz", ["code"], registry=registry)
        self.livez = Counter("kubeproxy_proxy_livez_total", "Answers of /livez", ["code"], registry=registry)

    def _own_metrics(self) -> None:
        registry = self.registry
        self.build = Info("kproxy_ebpf_build", "What runs here", registry=registry)
        self.build.info({"version": __version__})
        self.readyz = Counter("kproxy_ebpf_readyz_total", "Answers of /readyz", ["code"], registry=registry)
        self.map_writes = Counter(
            "kproxy_ebpf_map_writes_total", "Entries written or removed in a table", ["table"], registry=registry
        )
        self.sync_failures = Counter("kproxy_ebpf_sync_failures_total", "Syncs that failed", registry=registry)
        self.table_full = Counter(
            "kproxy_ebpf_table_full_total", "Writes refused because the table was full", ["table"], registry=registry
        )
        self.refused_objects = Gauge(
            "kproxy_ebpf_refused_objects", "Objects that can't be read, all or in part", ["kind"], registry=registry
        )
        self.cni_answers = Counter(
            "kproxy_ebpf_cni_requests_total",
            "Answers to the CNI plugin, by error code (0: success)",
            ["command", "code"],
            registry=registry,
        )
        self.source_connected = Gauge(
            "kproxy_ebpf_source_connected", "1 while changes in the cluster can be seen", registry=registry
        )
        self.attached_links = Gauge(
            "kproxy_ebpf_attached_links", "Pod links that carry our programs", registry=registry
        )
        self.redirect_links = Gauge(
            "kproxy_ebpf_redirect_links", "Pod links that redirect serves", ["ip_family"], registry=registry
        )
        self.other_links = Gauge(
            "kproxy_ebpf_redirect_other_links", "Pod links that redirect does not serve", ["reason"], registry=registry
        )
        self.attach_failures = Counter(
            "kproxy_ebpf_attach_failures_total", "Links that programs could not be attached to", registry=registry
        )
        self.settings_errors = Counter(
            "kproxy_ebpf_settings_errors_total", "Settings refused; the last good ones stayed", registry=registry
        )
        self.settings_valid = Gauge(
            "kproxy_ebpf_settings_valid", "1 while the settings offered last are those in force", registry=registry
        )
        self.settings_valid.set(1)


@dataclass(frozen=True, slots=True)
class DatapathReading:
    """What the maps say at one moment. `verdicts`, `ways`: name → (packets, bytes); `tables`: (entries, limit)."""

    verdicts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tables: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ways: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class DatapathCollector(Collector):
    """Turns a fresh `DatapathReading` into metrics at every scrape."""

    def __init__(self, read: Callable[[], DatapathReading]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        return []  # so that registering does not read the maps

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        packets = CounterMetricFamily("kproxy_ebpf_verdicts", "Packets by what happened to them", labels=["verdict"])
        size = CounterMetricFamily("kproxy_ebpf_verdict_bytes", "Bytes by what happened to them", labels=["verdict"])
        for verdict, (count, length) in reading.verdicts.items():
            packets.add_metric([verdict], count)
            size.add_metric([verdict], length)
        ways = CounterMetricFamily(
            "kproxy_ebpf_forwarded",
            "Packets by the way that they went on (forwarding: redirect)",
            labels=["way"],
        )
        for way, (count, _) in reading.ways.items():
            ways.add_metric([way], count)
        entries = GaugeMetricFamily("kproxy_ebpf_table_entries", "Entries in use", labels=["table"])
        limits = GaugeMetricFamily("kproxy_ebpf_table_max_entries", "Entries that fit", labels=["table"])
        for table, (used, limit) in reading.tables.items():
            entries.add_metric([table], used)
            limits.add_metric([table], limit)
        yield from (packets, size, ways, entries, limits)
