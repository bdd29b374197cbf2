"""A small API server on loopback: lists in pages, watches, WatchList, and every way to fail that the tests need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_INET6, inet_pton
from typing import Any

import yaml
from aiohttp import web

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def gone(_request: web.Request) -> web.Response:
    return web.json_response({"kind": "Status", "code": 410, "message": "too old resource version"}, status=410)


@dataclass
class FakeApi:
    streaming: bool = True
    version: int = 100
    objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by path, used up before the normal behaviour
    otherwise: Answer | None = None  # for methods other than GET
    port: int = 0
    _watches: dict[str, list[asyncio.Queue[bytes | None]]] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    async def start(self) -> FakeApi:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self.end_watches()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def kubeconfig(self, folder: Path, **user: str) -> Path:
        file = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": user}],
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def put(self, path: str, obj: dict[str, Any]) -> None:
        """Create or replace, and tell the watches."""
        metadata = obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        kind = "MODIFIED" if key in self.objects.setdefault(path, {}) else "ADDED"
        self.objects[path][key] = self._stamped(obj)
        self.send(path, {"type": kind, "object": self.objects[path][key]})

    def delete(self, path: str, namespace: str, name: str, *, silently: bool = False) -> None:
        obj = self._stamped(self.objects[path].pop((namespace, name)))
        if not silently:
            self.send(path, {"type": "DELETED", "object": obj})

    def bookmark(self, path: str) -> None:
        self.version += 1
        self.send(path, _bookmark(self.version))

    def send(self, path: str, event: dict[str, Any] | bytes) -> None:
        line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
        for queue in self._watches.get(path, []):
            queue.put_nowait(line)

    def end_watches(self) -> None:
        for queues in self._watches.values():
            for queue in queues:
                queue.put_nowait(None)

    def watching(self, path: str) -> int:
        return len(self._watches.get(path, []))

    def queries(self, path: str) -> list[dict[str, str]]:
        return [dict(request.query) for request in self.requests if request.path == path]

    def _stamped(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if waiting := self.answers.get(request.path):
            answer = waiting.pop(0)(request)
            return await answer if asyncio.iscoroutine(answer) else answer
        if request.method != "GET" and self.otherwise:
            return await self.otherwise(request)
        if request.query.get("watch") == "1":
            return await self._watch(request)
        return self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        items = list(self.objects.get(request.path, {}).values())
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", "0"))
        end = start + limit if limit else len(items)
        more = str(end) if end < len(items) else ""
        metadata = {"resourceVersion": str(self.version), "continue": more}
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        initial = request.query.get("sendInitialEvents") == "true"
        if initial and not self.streaming:
            return web.json_response(
                {"kind": "Status", "code": 422, "message": "sendInitialEvents forbidden"}, status=422
            )
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        if initial:
            for obj in self.objects.get(request.path, {}).values():
                queue.put_nowait(json.dumps({"type": "ADDED", "object": obj}).encode() + b"\n")
            queue.put_nowait(json.dumps(_bookmark(self.version, end=True)).encode() + b"\n")
        self._watches.setdefault(request.path, []).append(queue)
        try:
            with suppress(ConnectionError):
                while (line := await queue.get()) is not None:
                    await response.write(line)
        finally:
            self._watches[request.path].remove(queue)
        return response


def _bookmark(version: int, *, end: bool = False) -> dict[str, Any]:
    annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if end else {}
    metadata = {"resourceVersion": str(version), "creationTimestamp": None, **annotations}
    return {"type": "BOOKMARK", "object": {"kind": "Thing", "metadata": metadata, "spec": {}}}


def service(name: str = "web", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    default = {
        "clusterIP": "10.96.0.10",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
    }
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {**default, **spec}}


def slice_(name: str = "web-1", service_name: str = "web", count: int = 2, **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service_name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [f"10.244.{i // 200}.{i % 200 + 1}"], "conditions": {"ready": True}, "nodeName": "node1"}
            for i in range(count)
        ],
        **fields,
    }


def labelled(obj: dict[str, Any], **labels: str) -> dict[str, Any]:
    prefixed = {key.replace("_", "-"): value for key, value in labels.items()}
    return {**obj, "metadata": {**obj["metadata"], "labels": {**obj["metadata"].get("labels", {}), **prefixed}}}


def v4(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def v6(text: str) -> bytes:
    return inet_pton(AF_INET6, text)
