"""The framing of netlink messages, and how answers end. The kernel's side is a list of datagrams."""

from __future__ import annotations

import errno
import struct
import sys

import pytest

from kproxy_ebpf.linux.netlink import Netlink, attribute, attributes

DUMP, KIND = 0x301, 20
ERROR, DONE = 2, 3


class FakeSocket:
    """Answers with `datagrams`, one after the other."""

    def __init__(self, *datagrams: bytes) -> None:
        self.sent: list[bytes] = []
        self._datagrams = list(datagrams)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, _: int) -> bytes:
        return self._datagrams.pop(0)

    def close(self) -> None: ...


def message(kind: int, payload: bytes, flags: int = 0) -> bytes:
    data = struct.pack("=IHHII", 16 + len(payload), kind, flags, 0, 0) + payload
    return data + bytes(-len(data) % 4)


def end(kind: int, number: int = 0) -> bytes:
    return message(kind, (-number).to_bytes(4, sys.byteorder, signed=True))


def answered(monkeypatch: pytest.MonkeyPatch, *datagrams: bytes) -> tuple[Netlink, FakeSocket]:
    fake = FakeSocket(*datagrams)
    monkeypatch.setattr("kproxy_ebpf.linux.netlink.socket.socket", lambda *_: fake)
    return Netlink(4, "a table"), fake


def test_a_dump_ends_with_done_over_several_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = message(KIND, b"12345") + message(KIND, b"678")
    netlink, fake = answered(monkeypatch, odd, message(KIND, b"9"), end(DONE))
    assert [bytes(payload) for payload in netlink.dump(KIND, b"what")] == [b"12345", b"678", b"9"]
    assert not netlink.was_interrupted
    assert fake.sent == [struct.pack("=IHHII", 20, KIND, DUMP, 0, 0) + b"what"]


def test_a_dump_that_changes_meanwhile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    netlink, _ = answered(monkeypatch, message(KIND, b"", flags=0x10), end(DONE), end(DONE))
    assert len(list(netlink.dump(KIND, b""))) == 1
    assert netlink.was_interrupted
    assert list(netlink.dump(KIND, b"")) == []
    assert not netlink.was_interrupted, "the next one did not"


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_refusal_says_what_it_is_about(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    netlink, _ = answered(monkeypatch, end(kind, errno.EPERM))
    with pytest.raises(PermissionError, match="a table: Operation not permitted"):
        list(netlink.dump(KIND, b""))


def test_an_order_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    netlink, fake = answered(monkeypatch, end(ERROR), end(ERROR, errno.ENOENT))
    netlink.order(KIND, b"")
    assert fake.sent == [struct.pack("=IHHII", 16, KIND, 0x5, 0, 0)]
    with pytest.raises(FileNotFoundError):
        netlink.order(KIND, b"")


def test_a_message_without_a_length_is_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    netlink, _ = answered(monkeypatch, bytes(32))
    with pytest.raises(OSError, match="a message without a length"):
        list(netlink.dump(KIND, b""))


def test_attributes_are_read_as_they_are_written() -> None:
    written = b"head" + attribute(1, b"abc") + b"\0" + attribute(2 | 0x8000, b"")
    assert [(kind, bytes(value)) for kind, value in attributes(memoryview(written), 4)] == [(1, b"abc"), (2, b"")]
