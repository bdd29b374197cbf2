"""Requests of the plugin, as bytes, and the answers."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from kproxy_ebpf.cni.protocol import VERSIONS, CniError, Code, Request, failure, read_request, success

VARIABLES = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
RESULT = '{"cniVersion": "1.0.0",  "ips":[{"address":"fd00::2/64"}]}'
CONFIG = f'{{"cniVersion": "1.0.0", "name": "pods", "type": "kproxy-ebpf-cni", "prevResult": {RESULT}}}'


def message(variables: dict[str, str] = VARIABLES, config: str = CONFIG, greeting: str = "KPROXY_CNI=1") -> bytes:
    words = [greeting, *(f"{name}={value}" for name, value in variables.items())]
    return "".join(f"{word}\0" for word in words).encode() + b"\0" + config.encode()


def answer(data: bytes) -> tuple[int, str]:
    code, length = struct.unpack_from("=II", data)
    assert len(data) == 8 + length
    return code, data[8:].decode()


def with_result(**result: Any) -> str:
    return json.dumps({"cniVersion": "1.0.0", "prevResult": result})


def test_an_add() -> None:
    assert read_request(message()) == Request("ADD", "1.0.0", "c1", ("eth0",), RESULT)


def test_the_result_is_kept_as_it_was_written() -> None:
    odd = '{ "n" : 1e3,\n\t"t": "\\u00e4 ä", "n": 1.50 }'
    request = read_request(message(config=f'{{"prevResult": 1, "cniVersion":"0.4.0", "prevResult" :  {odd}}}'))
    assert request.result == odd
    assert answer(success(request.result)) == (0, odd)


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_that_are_known(version: str) -> None:
    assert read_request(message(config=f'{{"cniVersion": "{version}", "prevResult": {{}}}}')).version == version


@pytest.mark.parametrize(
    ("interfaces", "names"),
    [
        (None, ("eth0",)),
        ([], ("eth0",)),
        ([{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/c1"}], ("eth0",)),
        ([{"name": "net2", "sandbox": "/x"}, {"name": "eth0", "sandbox": "/x"}], ("eth0", "net2")),
        ([7, {"sandbox": "/x"}, {"name": "veth1", "sandbox": ""}], ("eth0",)),
        ("none", ("eth0",)),
    ],
    ids=["none", "empty", "host and pod", "two", "odd entries", "no list"],
)
def test_interfaces_of_the_pod(interfaces: Any, names: tuple[str, ...]) -> None:
    assert read_request(message(config=with_result(interfaces=interfaces))).interfaces == names


def test_a_status_needs_nothing_but_a_version() -> None:
    request = read_request(message({"CNI_COMMAND": "STATUS"}, '{"cniVersion": "1.1.0"}'))
    assert request == Request("STATUS", "1.1.0")


REFUSED = {
    "no JSON": (message(config="{"), Code.UNDECODABLE),
    "no object": (message(config="[]"), Code.UNDECODABLE),
    "not UTF-8": (message()[:-1] + b"\xff}", Code.UNDECODABLE),
    "too deep": (message(config='{"a":' * 50_000), Code.UNDECODABLE),
    "version to come": (message(config='{"cniVersion": "2.0.0", "prevResult": {}}'), Code.INCOMPATIBLE_VERSION),
    "version of before": (message(config='{"prevResult": {}}'), Code.INCOMPATIBLE_VERSION),
    "no version": (message(config='{"cniVersion": [], "prevResult": {}}'), Code.INCOMPATIBLE_VERSION),
    "first in the list": (message(config='{"cniVersion": "1.0.0"}'), Code.INVALID_CONFIGURATION),
    "result is null": (message(config='{"cniVersion": "1.0.0", "prevResult": null}'), Code.INVALID_CONFIGURATION),
    "no container": (message(VARIABLES | {"CNI_CONTAINERID": ""}), Code.INVALID_ENVIRONMENT),
    "no interface": (message({k: v for k, v in VARIABLES.items() if k != "CNI_IFNAME"}), Code.INVALID_ENVIRONMENT),
    "command": (message(VARIABLES | {"CNI_COMMAND": "DEL"}), Code.INVALID_ENVIRONMENT),
    "another plugin": (message(greeting="KPROXY_CNI=2"), Code.INCOMPATIBLE_VERSION),
    "nothing": (b"", Code.INCOMPATIBLE_VERSION),
    "cut short": (b"KPROXY_CNI=1\0CNI_COMMAND=ADD", Code.IO_FAILURE),
}


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(data: bytes, code: Code) -> None:
    with pytest.raises(CniError) as caught:
        read_request(data)
    assert caught.value.code == code
    exit_code, text = answer(failure(caught.value, data))
    body = json.loads(text)
    assert (exit_code, body["code"], body["msg"]) == (1, int(code), caught.value.message)
    assert body["msg"]
    assert isinstance(body["cniVersion"], str)


def test_a_request_that_is_cut_anywhere_is_refused() -> None:
    data = message()
    for length in range(len(data)):
        with pytest.raises(CniError):
            read_request(data[:length])


def test_an_error_names_the_version_of_its_request() -> None:
    data = message(config='{"cniVersion": "2.0.0"}')
    assert json.loads(answer(failure(CniError(Code.INCOMPATIBLE_VERSION, "unknown"), data))[1])["cniVersion"] == "2.0.0"
