"""Questions to the daemon of this machine, by HTTP."""

from __future__ import annotations

import json
import os
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from kproxy_ebpf.errors import BusyError, KproxyError
from kproxy_ebpf.observe.address import split_address

ANSWER_SECONDS = 2


class NoAnswerError(KproxyError):
    """The daemon can't be asked."""

    exit_code = os.EX_UNAVAILABLE


class UnknownServiceError(KproxyError):
    """The daemon knows no Service of this name."""

    exit_code = os.EX_NOINPUT


def ask_daemon(address: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """HTTP status and JSON body from the server at `address` (as its flag has it), None where nothing useful comes."""
    host, port = split_address(address, "address")
    connection = HTTPConnection(host or "localhost", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return (answer.status, body) if isinstance(body, dict) else None


def ask_explanation(metrics_address: str, namespace: str, name: str) -> dict[str, Any]:
    """What the daemon says of a Service. Raises NoAnswerError, UnknownServiceError, BusyError."""
    answer = ask_daemon(metrics_address, f"/explain/{quote(namespace, safe='')}/{quote(name, safe='')}")
    if answer is None:
        raise NoAnswerError(
            f"no daemon answers on {metrics_address}: start it, or name its address with --metrics-address"
        )
    status, body = answer
    if status == 404:
        raise UnknownServiceError(str(body["reason"]))
    if status != 200:
        raise BusyError(str(body["reason"]))
    return body
