"""Answers the plugin at the end of the CNI chain: a new pod's link has its programs when ADD is answered.

DEL and GC don't come here (cni/plugin.c): a pod's link takes its programs with it, so there is nothing to release.
Nothing is remembered from one request to the next; whoever asks twice gets the same answer twice.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import structlog

from kproxy_ebpf.cni.protocol import REQUEST_MAX_BYTES, CniError, Code, Request, failure, read_request, success
from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.netns import NamespaceGoneError
from kproxy_ebpf.linux.veth import HostLink, host_links
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 64  # others wait in the kernel's queue, and their plugins for an answer
QUEUE = 256
REQUEST_SECONDS = 5.0
IN_FORCE_SECONDS = 15.0  # plugins wait for an answer for 30
RIGHTS_SECONDS = 5.0
TOPIC = "cni-socket"
_PEER = struct.Struct("=iii")  # struct ucred: pid, uid, gid
_CHUNK_BYTES = 1 << 16


class CniServer:
    """Listens at `path`, for root alone. `run` it as a task.

    `in_force` returns once the links' programs do what the settings say. `listening` is set while plugins are answered.
    """

    def __init__(
        self,
        path: Path,
        links: LinkWatcher,
        in_force: Callable[[], Awaitable[object]],
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._path, self._links, self._in_force = path, links, in_force
        self._answers, self._health = metrics.cni_answers, health
        self.listening = asyncio.Event()
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)

    async def run(self) -> NoReturn:
        """Answer until cancelled. The socket's file stays, for plugins wait where nobody listens any more."""
        while (problem := rights_problem(self._path.parent)) is not None:
            self._health.problem(TOPIC, problem)
            await asyncio.sleep(RIGHTS_SECONDS)
        self._health.problem(TOPIC, None)
        loop = asyncio.get_running_loop()
        with _listening(self._path) as listener:
            self.listening.set()
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._free.acquire()
                    connection, _ = await loop.sock_accept(listener)
                    group.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        """One request and its answer. Whoever does not speak in time, or is not root, gets none."""
        with ExitStack() as stack:
            stack.callback(self._free.release)
            stack.enter_context(connection)
            if not _is_roots(connection):
                log.warning("a CNI request that is not root's is not answered")
                return
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    data, netns = await _receive(connection)
                if netns >= 0:
                    stack.callback(os.close, netns)
                answer = await self._answer(data, netns)
                async with asyncio.timeout(REQUEST_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(connection, answer)
            except (OSError, TimeoutError) as error:
                log.warning("a CNI request could not be answered", error=str(error) or "it took too long")

    async def _answer(self, data: bytes, netns: int) -> bytes:
        command = ""  # one that can't be read is counted, too
        try:
            request = read_request(data)
            command = request.command
            await self._grant(request, netns)
        except CniError as error:
            log.warning("a CNI request is refused", code=int(error.code), reason=error.message, details=error.details)
            self._answers.labels(command, str(int(error.code))).inc()
            return failure(error, data)
        self._answers.labels(command, "0").inc()
        return success(request.result if request.command == "ADD" else "")

    async def _grant(self, request: Request, netns: int) -> None:
        """Do what is asked for. Raises CniError."""
        try:
            async with asyncio.timeout(IN_FORCE_SECONDS):
                await self._in_force()
        except TimeoutError:
            code = Code.NOT_AVAILABLE if request.command == "STATUS" else Code.TRY_AGAIN_LATER
            raise CniError(code, "the settings of kproxy-ebpf are not yet in force on this node") from None
        if request.command == "STATUS":
            return
        for name, link in (await _find(request, netns)).items():
            if link is None:
                log.info("a pod's interface has no end on the host: it is not served", pod=request.container, name=name)
            elif request.command == "ADD":
                await self._equip(link)
            else:
                await self._verify(link)

    async def _equip(self, link: HostLink) -> None:
        try:
            await self._links.equip(*link)
        except NodeError as error:
            raise CniError(Code.TRY_AGAIN_LATER, "the pod's link could not get its programs", str(error)) from error

    async def _verify(self, link: HostLink) -> None:
        try:
            is_as_wanted = await self._links.is_as_wanted(*link)
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"link {link.name} can't be read", str(error)) from error
        if not is_as_wanted:
            raise CniError(Code.NOT_ATTACHED, f"link {link.name} has lost its programs")


async def _find(request: Request, netns: int) -> dict[str, HostLink | None]:
    """The host's ends of the pod's interfaces. Raises CniError."""
    if netns < 0:
        raise CniError(Code.INVALID_ENVIRONMENT, "the request comes without a network namespace")
    try:
        found = await asyncio.to_thread(host_links, netns, request.interfaces)
    except NamespaceGoneError as error:
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is no network namespace", str(error)) from error
    except OSError as error:
        raise CniError(Code.IO_FAILURE, "the pod's interfaces can't be read", str(error)) from error
    wanted = request.interfaces[0]
    if wanted not in found:
        raise CniError(Code.NO_INTERFACE, "the interface CNI_IFNAME is not in the pod", wanted)
    return found


def rights_problem(folder: Path) -> str | None:
    """Why a socket in `folder` would not be root's alone; the folder is made where it is missing."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        return f"the CNI plugin can't be served: {folder}: {error.strerror}"
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"the CNI plugin is not served: others than root may write to {folder}: chown root and chmod 755"
    return None


def _listening(path: Path) -> socket.socket:
    """A socket at `path`, in the place of what a daemon before has left. It has its rights before it has its name."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(beside))
        beside.chmod(0o600)
        listener.listen(QUEUE)
        beside.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_roots(connection: socket.socket) -> bool:
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


async def _receive(connection: socket.socket) -> tuple[bytes, int]:
    """A request up to the end of its stream, and the descriptor that came with it (-1: none). Raises OSError."""
    data, descriptors = bytearray(), list[int]()
    try:
        while len(data) <= REQUEST_MAX_BYTES:
            await _until_readable(connection)
            chunk, received, _, _ = socket.recv_fds(connection, _CHUNK_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            descriptors += received
            if not chunk:
                return bytes(data), descriptors.pop(0) if descriptors else -1
            data += chunk
        raise OSError("a request that is too long")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _until_readable(connection: socket.socket) -> None:
    """Asyncio has no call that receives descriptors."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
