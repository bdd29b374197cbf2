"""Lines and pages to changes: cuts anywhere, loose JSON, and the bound of a line."""

from __future__ import annotations

import json

import pytest
from fake_api import service
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.kinds.service import SERVICE
from kproxy_ebpf.kube.stream import (
    Bookmark,
    BrokenStreamError,
    Change,
    Failure,
    LineSplitter,
    decode_line,
    decode_page,
)

SERVICES = SERVICE.resource(Scope())


@settings(deadline=None)  # the machine may be busy
@given(lines=st.lists(st.binary().map(lambda b: b.replace(b"\n", b"")), max_size=20), cuts=st.lists(st.integers(1, 9)))
def test_lines_are_the_same_wherever_the_pieces_are_cut(lines, cuts):
    rest, pieces = b"".join(line + b"\n" for line in lines), []
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    splitter = LineSplitter()
    found = [line for piece in [*pieces, rest] for line in splitter.feed(piece)]
    assert found == [line for line in lines if line.strip()]


def test_a_line_may_be_as_long_as_the_bound_and_no_longer():
    splitter = LineSplitter(max_bytes=100)
    assert splitter.feed(b"x" * 60) == []
    assert splitter.feed(b"x" * 40 + b"\ny") == [b"x" * 100]
    splitter.feed(b"y" * 99)
    with pytest.raises(BrokenStreamError, match="longer than 100 bytes"):
        splitter.feed(b"y")


def line(kind: str, obj: object) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


def test_the_forms_of_an_event():
    obj = service("a")
    obj["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    for kind in ("ADDED", "MODIFIED"):
        change = decode_line(SERVICES, line(kind, obj))
        assert isinstance(change, Change)
        assert change.object == SERVICES.convert(obj)
        assert (change.namespace, change.name, change.uid, change.version) == ("default", "a", "u", "7")
    assert decode_line(SERVICES, line("DELETED", obj)) == Change("default", "a", "u", "7", None)
    end = {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}
    assert decode_line(SERVICES, line("BOOKMARK", end)) == Bookmark("9", initial_end=True)
    plain = {"metadata": {"resourceVersion": "9", "annotations": None}, "spec": {}}
    assert decode_line(SERVICES, line("BOOKMARK", plain)) == Bookmark("9", initial_end=False)
    assert decode_line(SERVICES, line("ERROR", {"code": 410, "message": "old"})) == Failure(410, "old")
    assert decode_line(SERVICES, line("ERROR", {"code": None})) == Failure(500, "no reason given")


def test_a_deleted_object_need_not_be_readable():
    broken = {"metadata": {"name": "a", "namespace": "n"}, "spec": 3}
    assert decode_line(SERVICES, line("DELETED", broken)) == Change("n", "a", "", "", None)


def test_an_unreadable_object_is_refused_by_name():
    change = decode_line(SERVICES, line("ADDED", {"metadata": {"name": "a", "namespace": "n"}, "spec": 3}))
    assert isinstance(change, Change)
    assert (change.namespace, change.name) == ("n", "a")
    assert str(change.object) == "spec: should be an object, not 3"


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"3", b"null", b"{}", b"\xff\xfe", b"[" * 100_000),
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":null}',
        b'{"type":"X","object":{}}',
        b'{"type":"ADDED","object":{"metadata":{"namespace":"n"}}}',
    ],
)
def test_what_is_no_event_breaks_the_stream(text):
    with pytest.raises(BrokenStreamError):
        decode_line(SERVICES, text)


def test_a_page_with_one_bad_object_gives_the_others():
    good, bad = service("good"), {"metadata": {"name": "bad", "namespace": "n"}, "spec": {"ports": 1}}
    body = {"metadata": {"resourceVersion": "5", "continue": "t"}, "items": [good, bad, good]}
    page = decode_page(SERVICES, json.dumps(body).encode())
    assert (page.version, page.more) == ("5", "t")
    first, second, third = page.changes
    assert first.object == third.object == SERVICES.convert(good)
    assert isinstance(second.object, Refusal)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"metadata":{}}', b'{"metadata":{"resourceVersion":"1"},"items":3}']
)
def test_what_is_no_list(body):
    with pytest.raises(BrokenStreamError):
        decode_page(SERVICES, body)
