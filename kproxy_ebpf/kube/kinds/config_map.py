"""The one ConfigMap (v1) that holds the settings. It is no part of the cluster's state, so it has no row in KINDS."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube.stream import Resource
from kproxy_ebpf.kube.wire import Metadata


class ConfigMapObject(TypedDict):
    metadata: Metadata
    data: NotRequired[dict[str, str] | None]


def config_map_of(obj: ConfigMapObject) -> dict[str, str]:
    """A ConfigMap's data."""
    return obj.get("data") or {}


def config_map(namespace: str, name: str) -> Resource[dict[str, str]]:
    """What to ask the API server for. An unreadable ConfigMap changes nothing: the settings stay as they are."""
    return Resource(
        f"/api/v1/namespaces/{namespace}/configmaps",
        ConfigMapObject,
        config_map_of,
        query=(("fieldSelector", f"metadata.name={name}"),),
    )
