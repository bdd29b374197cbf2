"""Everything that starts in a test, in this process or in its children, shares compiled programs."""

from __future__ import annotations

import os

from kproxy_ebpf.lab.cache import with_compiled_programs

os.environ |= with_compiled_programs({**os.environ})
