"""What the plugin asks (cni/plugin.c) and what the daemon answers, over the daemon's unix socket.

A request is the text ``KPROXY_CNI=1``, the variables CNI_… that the plugin was given, each ended by a NUL byte, one
more NUL byte, and the network configuration from its standard input. The end of the stream ends it. The descriptor of
the pod's network namespace comes with its first byte, for ADD and CHECK.

An answer is the exit code and the length of what follows, as two 32-bit numbers in the machine's byte order, and what
the plugin shall print. Both sides are on one machine, so the byte order is the same.

The rules and the error codes are those of the CNI specification, versions 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kproxy_ebpf.cni.json_text import members, parse
from kproxy_ebpf.errors import quoted

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the specification. The results of 0.3 differ from those of 0.4 in nothing that we look at."""

COMMANDS = ("ADD", "CHECK", "STATUS")
"""What the plugin asks the daemon; it answers the others by itself."""

REQUEST_MAX_BYTES = 2 << 20  # of the plugin, MESSAGE_BYTES * 2
_HEADER = struct.Struct("=II")
_GREETING = b"KPROXY_CNI=1"
_DEFAULT_VERSION = "1.0.0"


class Code(IntEnum):
    """Error codes: up to 99 those of the specification, from 100 on ours."""

    INCOMPATIBLE_VERSION = 1
    NO_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    NO_INTERFACE = 100
    NOT_ATTACHED = 101


class CniError(Exception):
    """The answer to a request that can't be granted."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well-formed.

    `interfaces`: names in the pod's network namespace, that of CNI_IFNAME first. `result`: the result of the plugin
    before, as it was written. Both are empty for STATUS.
    """

    command: str
    version: str
    container: str = ""
    interfaces: tuple[str, ...] = ()
    result: str = ""


def read_request(data: bytes) -> Request:
    """Raises CniError."""
    variables, text = _split(data)
    command = variables.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(Code.INVALID_ENVIRONMENT, f"the daemon is asked for no {quoted(command)}")
    config = _configuration(text)
    version = version_of(config)
    if command == "STATUS":
        return Request(command, version)
    for name in ("CNI_CONTAINERID", "CNI_IFNAME"):
        if not variables.get(name):
            raise CniError(Code.INVALID_ENVIRONMENT, f"{name} is not set")
    result = config.get("prevResult")
    if not isinstance(result, dict):
        raise CniError(
            Code.INVALID_CONFIGURATION, "there is no prevResult: kproxy-ebpf-cni stands behind another plugin in a list"
        )
    interfaces = _interfaces(variables["CNI_IFNAME"], result)
    return Request(command, version, variables["CNI_CONTAINERID"], interfaces, text[members(text)["prevResult"]])


def version_of(config: Mapping[str, Any]) -> str:
    """The version of the specification in which a configuration is written. Raises CniError for an unknown one."""
    version = config.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        known = f"known are {VERSIONS[0]} to {VERSIONS[-1]}"
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion {quoted(version)} is unknown: {known}")
    return str(version)


def success(output: str = "") -> bytes:
    """The answer with which the plugin ends well and prints `output`."""
    return _answer(0, output)


def failure(error: CniError, data: bytes) -> bytes:
    """The answer with which the plugin fails. `data`: the request, whose version the answer names."""
    body = {
        "cniVersion": _version_in(data),
        "code": int(error.code),
        "msg": error.message,
        "details": error.details,
    }
    return _answer(1, json.dumps(body) + "\n")


def _answer(exit_code: int, output: str) -> bytes:
    body = output.encode()
    return _HEADER.pack(exit_code, len(body)) + body


def _split(data: bytes) -> tuple[dict[str, str], str]:
    """The variables, and the configuration's text."""
    head, separator, body = data.partition(b"\0\0")
    greeting, *assignments = head.split(b"\0")
    if greeting != _GREETING:
        raise CniError(Code.INCOMPATIBLE_VERSION, "the plugin is of another version than the daemon: install its own")
    if not separator:
        raise CniError(Code.IO_FAILURE, "the request ends too soon")
    try:
        pairs = (assignment.decode().partition("=") for assignment in assignments)
        return {name: value for name, _, value in pairs}, body.decode()
    except UnicodeDecodeError as error:
        raise CniError(Code.UNDECODABLE, "the request is not UTF-8", str(error)) from None


def _configuration(text: str) -> dict[str, Any]:
    try:
        config = parse(text)
    except ValueError as error:
        raise CniError(Code.UNDECODABLE, "the network configuration is no JSON", str(error)) from None
    if not isinstance(config, dict):
        raise CniError(Code.UNDECODABLE, "the network configuration is no JSON object")
    return config


def _interfaces(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    """The pod's interfaces: the one that the runtime asked for, and any other that a plugin before has made inside."""
    listed = result.get("interfaces")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    inside = [str(entry.get("name", "")) for entry in entries if entry.get("sandbox")]
    return tuple(dict.fromkeys(filter(None, [name, *inside])))


def _version_in(data: bytes) -> str:
    """The version that a request names, also one that we don't know; another where it names none."""
    try:
        config = _configuration(_split(data)[1])
    except CniError:
        return _DEFAULT_VERSION
    version = config.get("cniVersion")
    return version if isinstance(version, str) and version else _DEFAULT_VERSION
