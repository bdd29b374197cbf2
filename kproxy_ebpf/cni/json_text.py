"""JSON as text: where the parts of an object or a list stand, so that all else can be left as it is, byte for byte.

A number that is parsed and written again may look different, and a runtime written in Go reads 1000.0 where it wants a
whole number as an error.
"""

from __future__ import annotations

import json
from typing import Any

_BLANKS = " \t\r\n"
_decoder = json.JSONDecoder()


def parse(text: str) -> Any:
    """The value that `text` holds. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def members(text: str, at: int = 0) -> dict[str, slice]:
    """Where the values of the object that begins at `at` stand; of a name that is there twice the last one's.

    `text` must be JSON.
    """
    found: dict[str, slice] = {}
    at = _skip(text, at) + 1
    while text[at := _skip(text, at)] != "}":
        name, at = _decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = _decoder.raw_decode(text, begin)
        found[name] = slice(begin, end)
        at = _after_comma(text, end)
    return found


def elements(text: str, at: int) -> list[slice]:
    """Where the elements of the list that begins at `at` stand. `text` must be JSON."""
    found: list[slice] = []
    at = _skip(text, at) + 1
    while text[at := _skip(text, at)] != "]":
        _, end = _decoder.raw_decode(text, at)
        found.append(slice(at, end))
        at = _after_comma(text, end)
    return found


def _after_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return at + 1 if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    """The first place from `at` on that is not blank."""
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at
