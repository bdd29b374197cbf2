"""When the flow table counts as crowded."""

import pytest

from kproxy_ebpf.daemon.flows import crowded
from kproxy_ebpf.datapath.flows.sweep import Swept


@pytest.mark.parametrize(
    ("swept", "named"),
    [
        ({4: Swept(0, 0, 1000), 6: Swept(899, 0, 1000)}, []),
        ({4: Swept(1000, 101, 1000)}, []),
        ({4: Swept(1000, 100, 1000)}, ["flows_v4", "--max-flows", "900 of 1000"]),
        ({4: Swept(10, 0, 10), 6: Swept(10, 0, 10)}, ["flows_v4", "flows_v6"]),
    ],
)
def test_a_table_that_forgets_is_named_before_it_does(swept, named):
    sentence = crowded(swept)
    assert (sentence is not None) == bool(named)
    for word in named:
        assert word in sentence
