"""Waiting for something to become true: polled, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A look takes time from what is waited for. The longer the wait has been, the less another pause adds to it.
PAUSE_SHARE, PAUSE_SECONDS_MAX = 0.05, 0.25


def until(condition: Callable[[], T], what: str, *, seconds: float = 10, pause: float = 0.01) -> T:
    """Call `condition` until it returns something true, and return that; OSError counts as "not yet".

    `pause` is in seconds, between the first calls. Raises TimeoutError, which says `what` was waited for and how the
    last call ended.
    """
    begin = time.monotonic()
    deadline = begin + seconds
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except OSError as error:
            last = error
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}; last: {last!r}")
        time.sleep(max(pause, min(PAUSE_SECONDS_MAX, PAUSE_SHARE * (now - begin))))
