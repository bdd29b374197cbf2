"""Where the parts of a JSON text stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.cni.json_text import elements, members, parse

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
indents = st.sampled_from([None, 0, 3, "\t"])


@given(st.dictionaries(st.text(), values), indents)
def test_each_member_is_found(content: dict[str, Any], indent: int | str | None) -> None:
    text = json.dumps(content, indent=indent)
    assert {name: json.loads(text[place]) for name, place in members(text).items()} == content


@given(st.lists(values), indents)
def test_each_element_is_found(content: list[Any], indent: int | str | None) -> None:
    text = json.dumps(content, indent=indent)
    assert [json.loads(text[place]) for place in elements(text, 0)] == content


def test_numbers_keep_their_look() -> None:
    text = ' {"a" : 1e3 ,\r\n\t"b":[ 1.50, -0 ] }'
    assert {name: text[place] for name, place in members(text).items()} == {"a": "1e3", "b": "[ 1.50, -0 ]"}


def test_of_a_name_that_is_there_twice_the_last_counts() -> None:
    text = '{"a": 1, "a": 2}'
    assert text[members(text)["a"]] == str(json.loads(text)["a"]) == "2"


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "[" * 100_000], ids=["empty", "open", "no value", "deep"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)
