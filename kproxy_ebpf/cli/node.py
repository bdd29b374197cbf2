"""Commands about this node: `check`, `monitor`, `cleanup`, `demo`."""

from __future__ import annotations

COMMANDS: tuple[()] = ()
