"""Everything that starts in a test, in this process or in its children, shares compiled programs."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from kproxy_ebpf.lab.cache import with_compiled_programs
from kproxy_ebpf.linux.kernel import has_tcx

# How long generated input takes says how busy the machine is; the first text of a clone waits for Unicode's tables.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

os.environ |= with_compiled_programs({**os.environ})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before 6.6 a test that asks for TCX has nothing to show."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "tcx" in parameters.values() and not has_tcx():
        pytest.skip("this kernel has no TCX (Linux 6.6)")
