"""The CNI plugin alone, against a daemon that is pretended: what it says when that does not answer as it should."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kproxy_ebpf.cni.protocol import VERSIONS, read_request
from kproxy_ebpf.lab.cni import PLUGINS

PLUGIN = PLUGINS[-1] / "kproxy-ebpf-cni"
NOBODY = 65534
RESULT = '{"ips": [{"address": "fd00::2/64"}],  "n": 1e3}'


@pytest.fixture
def path() -> Iterator[Path]:
    """In a folder that other users may enter: pytest's own are root's."""
    with TemporaryDirectory(prefix="kproxy-cni-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "cni.sock"


def call(command: str, path: Path, *, config: str = "", version: str = "1.0.0", **variables: str):
    """Run the plugin; its exit code and what it printed. It never writes to standard error."""
    text = config or f'{{"cniVersion": "{version}", "socket": "{path}", "prevResult": {RESULT}}}'
    known = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "eth0"}
    environment = {name: value for name, value in (known | variables).items() if value}
    done = subprocess.run([PLUGIN], input=text.encode(), capture_output=True, env=environment, timeout=60, check=False)
    assert done.stderr == b""
    return done.returncode, done.stdout.decode()


def code_of(answer: tuple[int, str]) -> int:
    exit_code, text = answer
    assert exit_code == 1
    body = json.loads(text)
    assert body.keys() == {"cniVersion", "code", "msg", "details"}
    assert body["msg"]
    return body["code"]


@contextmanager
def daemon(path: Path, *answers: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """Answers one connection after the other, and then listens no more; yields the requests that came."""
    requests: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        for answer in answers:
            with listener.accept()[0] as connection:
                request = b""
                while chunk := connection.recv(1 << 16):
                    request += chunk
                requests.append(request)
                connection.sendall(answer(request))
        listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield requests
    thread.join(10)
    assert not thread.is_alive()


def says(text: str, exit_code: int = 0) -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("=II", exit_code, len(text.encode())) + text.encode()


def dies(_: bytes) -> bytes:
    return b""


def dies_in_its_answer(_: bytes) -> bytes:
    return struct.pack("=II", 0, 100) + b"half"


def test_it_hands_on_what_it_was_given_and_what_it_is_answered(path):
    with daemon(path, says("{} ä\n"), says("no\n", 1)) as requests:
        assert call("ADD", path, CNI_ARGS="A=b;C=d") == (0, "{} ä\n")
        assert call("ADD", path) == (1, "no\n")
    request = read_request(requests[0])
    assert (request.command, request.container, request.interfaces) == ("ADD", "c1", ("eth0",))
    assert request.result == RESULT
    assert b"\0CNI_ARGS=A=b;C=d\0" in requests[0]


def test_large_messages(path):
    large = "x" * 900_000
    with daemon(path, says(large)) as requests:
        config = f'{{"cniVersion": "1.0.0", "padding": "{large}", "socket": "{path}", "prevResult": {RESULT}}}'
        assert call("ADD", path, config=config) == (0, large)
    assert read_request(requests[0]).result == RESULT
    assert code_of(call("ADD", path, config=f'{{"socket": "{path}", "padding": "{"x" * (1 << 20)}"}}')) == 5


@pytest.mark.parametrize("death", [dies, dies_in_its_answer])
def test_a_daemon_that_dies_is_asked_again(path, death):
    with daemon(path, death, says("{}")) as requests:
        assert call("ADD", path) == (0, "{}")
    assert requests[0] == requests[1]


def test_a_daemon_that_comes_late(path):
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(call("ADD", path)))
    asking.start()
    time.sleep(1)
    assert not answers
    with daemon(path, says("{}")):
        asking.join(10)
    assert answers == [(0, "{}")]


def test_a_daemon_that_stays_away(path):
    begin = time.monotonic()
    assert code_of(call("STATUS", path)) == 50
    assert code_of(call("ADD", path)) == 11
    assert 12 < time.monotonic() - begin < 25
    path.touch()  # nobody listens there
    assert code_of(call("CHECK", path)) == 11


def test_a_socket_that_is_not_roots(path):
    """Another user listens where the daemon should: it is told nothing."""
    code = (
        f"import os, socket; os.setuid({NOBODY}); s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); "
        "s.listen(); print(flush=True); c = s.accept()[0]; print(len(c.recv(1000)))"
    )
    path.parent.chmod(0o777)
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "\n"
        exit_code, text = call("ADD", path)
        assert code_of((exit_code, text)) == 5
        assert "not root's" in text
        assert other.stdout.readline() == "0\n"


def test_a_socket_that_may_not_be_reached(path):
    """As for a runtime without privileges."""
    with daemon(path, says("{}")):
        path.chmod(0o600)
        config = f'{{"cniVersion": "1.0.0", "socket": "{path}", "prevResult": {{}}}}'
        plugin = path.with_name("plugin")
        plugin.write_bytes(PLUGIN.read_bytes())
        plugin.chmod(0o755)
        environment = {"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"}
        done = subprocess.run([plugin], input=config, capture_output=True, text=True, env=environment, user=NOBODY)
        assert code_of((done.returncode, done.stdout)) == 5
        assert call("ADD", path) == (0, "{}")


@pytest.mark.parametrize("version", [*VERSIONS, "2.0.0"])
def test_version(path, version):
    exit_code, text = call("VERSION", path, version=version)
    assert (exit_code, json.loads(text)) == (0, {"cniVersion": version, "supportedVersions": list(VERSIONS)})


@pytest.mark.parametrize("config", ["{", "[]", "", '{"cniVersion": "\\u0031"}', '{"cniVersion', "\0"])
def test_a_version_that_can_not_be_read(path, config):
    exit_code, text = call("VERSION", path, config=config or " ")
    assert (exit_code, json.loads(text)["cniVersion"]) == (0, "1.0.0")


@pytest.mark.parametrize("command", ["DEL", "GC"])
@pytest.mark.parametrize("config", ["{", ""])
def test_what_never_fails(path, command, config):
    assert call(command, path, config=config, CNI_NETNS="/run/netns/gone", CNI_CONTAINERID="") == (0, "")


def test_environments_that_lack_something(path):
    assert code_of(call("", path)) == 4
    assert code_of(call("BUY", path)) == 4
    assert code_of(call("ADD", path, CNI_NETNS="")) == 4
    assert code_of(call("ADD", path, CNI_NETNS="/run/netns/gone")) == 3


@pytest.mark.parametrize(
    "value", ['"' + "x" * 108 + '"', '""', "7", '"a\\u0062"'], ids=["long", "none", "number", "escape"]
)
def test_a_path_that_no_socket_has(path, value):
    assert code_of(call("ADD", path, config=f'{{"socket": {value}}}')) == 7


def test_only_members_of_the_configuration_itself_count(path):
    """What a pod's owner can write into it stands deeper, or in a string."""
    other = (
        '{"args": {"cni": {"socket": "/tmp/evil"}}, "a": ["socket", "\\"socket\\": \\"/tmp/evil\\""], "cniVersion": '
    )
    with daemon(path, says("{}")):
        assert call("ADD", path, config=f'{other}"0.4.0", "socket" : "{path}", "prevResult": {{"socket": "/x"}}}}') == (
            0,
            "{}",
        )
    assert json.loads(call("VERSION", path, config=f'{other}"0.4.0"}}')[1])["cniVersion"] == "0.4.0"


def test_it_runs_on_any_node():
    done = subprocess.run(["ldd", PLUGIN], capture_output=True, text=True, check=False)
    assert "not a dynamic executable" in done.stderr + done.stdout
    assert os.access(PLUGIN, os.X_OK)
