"""One world for all questions: it takes as long to build as everything that is asked in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cases import CASES
from contenders import Contenders, contenders


@pytest.fixture(scope="session")
def world() -> Iterator[Contenders]:
    with contenders(CASES) as world:
        yield world
