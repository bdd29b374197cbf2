"""Waiting for something to become true: polled, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, seconds: float = 10, pause: float = 0.01) -> T:
    """Call `condition` until it returns something true, and return that; OSError counts as "not yet".

    Raises TimeoutError, which says `what` was waited for and how the last call ended.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except OSError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}; last: {last!r}")
        time.sleep(pause)
