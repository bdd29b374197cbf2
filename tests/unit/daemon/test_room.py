import pytest

from kproxy_ebpf.daemon.room import crowded


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({}, []),
        ({"flows_v4": (899, 1000), "affinity_v6": (0, 10)}, []),
        ({"flows_v4": (900, 1000)}, ["flows_v4", "--max-flows", "900 of 1000"]),
        ({"flows_v4": (10, 10), "affinity_v6": (10, 10)}, ["flows_v4", "affinity_v6", "--max-affinity"]),
        ({"frontends_v4": (10, 10), "slots_v4": (10, 10)}, []),  # these refuse, and say so when they do
    ],
)
def test_tables_that_forget_are_named_before_they_do(tables, named):
    sentence = crowded(tables)
    assert (sentence is not None) == bool(named)
    for word in named:
        assert word in sentence
