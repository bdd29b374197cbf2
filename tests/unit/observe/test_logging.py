"""One line per record, whoever logs, at the level of the moment."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from kproxy_ebpf.observe.logging import configure, set_level


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_records_of_both_libraries_look_the_same(stream: io.StringIO) -> None:
    structlog.get_logger().warning("table is full", table="flows_v4")
    logging.getLogger("aiohttp").warning("odd request")
    ours, theirs = lines(stream)
    assert (ours["event"], ours["level"], ours["table"]) == ("table is full", "warning", "flows_v4")
    assert (theirs["event"], theirs["level"]) == ("odd request", "warning")
    assert "timestamp" in ours
    assert "timestamp" in theirs


def test_the_level_changes_at_run_time(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    log.debug("unheard")
    set_level("debug")
    log.debug("heard")
    set_level("error")
    log.warning("unheard")
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    set_level("debug")
    logging.getLogger("watchfiles.main").info("1 change detected")
    assert lines(stream) == []


def test_a_traceback_stays_in_its_line(stream: io.StringIO) -> None:
    try:
        int("odd")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert "ValueError: invalid literal" in str(line["exception"])
