"""Tables and the maps they are written to, for the tests of all that stands in tables."""

from __future__ import annotations

import pytest
from simulate import World


@pytest.fixture
def world() -> World:
    return World()
