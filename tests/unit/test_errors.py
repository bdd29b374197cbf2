"""How messages quote what they complain about."""

import time

import pytest

from kproxy_ebpf.errors import quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("tc", "'tc'"),
        (80.5, "80.5"),
        (None, "None"),
        ("x" * 1000, "'" + "x" * 59),
        ([["x"]], "a list"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_quotation_is_short(value: object, text: str) -> None:
    assert quoted(value) == text


def test_a_number_that_python_refuses_to_write_is_told_by_its_size() -> None:
    assert quoted(1 << 20_000) == "a number of 20001 bits"


def test_a_huge_value_costs_nothing() -> None:
    bomb: object = "x"
    for _ in range(30):
        bomb = [bomb] * 9
    started = time.process_time()
    assert quoted(bomb) == "a list"
    assert time.process_time() - started < 0.1
