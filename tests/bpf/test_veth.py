"""The host's end of a pod's interface, as the kernel has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from socket import if_nametoindex

import pytest
from links import ip

from kproxy_ebpf.lab.netns import RUN_NETNS
from kproxy_ebpf.linux.netns import NamespaceGoneError, entered
from kproxy_ebpf.linux.veth import HostLink, host_links


@contextmanager
def opened(path: object) -> Iterator[int]:
    descriptor = os.open(str(path), os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pod(netns: str) -> Iterator[int]:
    with opened(RUN_NETNS / f"{netns}-pod") as descriptor:
        yield descriptor


def test_both_ends_of_a_pair(netns: str, pod: int) -> None:
    ip(f"link add veth0 type veth peer name eth0 netns {netns}-pod")
    ip(f"link add veth1 type veth peer name net1 netns {netns}-pod")
    assert host_links(pod, ["net1", "eth0"]) == {
        "eth0": HostLink(if_nametoindex("veth0"), "veth0"),
        "net1": HostLink(if_nametoindex("veth1"), "veth1"),
    }


def test_names_that_are_not_there(netns: str, pod: int) -> None:
    assert host_links(pod, ["eth0", "far-too-long-for-an-interface", ""]) == {}


def test_interfaces_that_have_no_end_on_the_host(netns: str, pod: int) -> None:
    ip("link add uplink type veth peer name wire", "link add link uplink name mac0 type macvlan mode bridge")
    ip(f"link set mac0 netns {netns}-pod")
    assert host_links(pod, ["mac0", "lo"]) == {"mac0": None, "lo": None}


def test_the_other_end_in_a_third_namespace_is_not_taken_for_a_link_of_the_same_number(netns: str, pod: int) -> None:
    """Each namespace numbers its links from 1: here a pair of ours has the very numbers of the pod's pair."""
    third = f"{netns}-third"
    ip(f"netns add {third}")
    try:
        with entered(RUN_NETNS / third):
            ip(f"link add middle index 50 type veth peer name eth0 index 60 netns {netns}-pod")
        ip(f"link add decoy index 50 type veth peer name eth1 index 60 netns {third}")
        assert host_links(pod, ["eth0"]) == {"eth0": None}
        with opened(RUN_NETNS / third) as other:
            assert host_links(other, ["eth1"]) == {"eth1": HostLink(50, "decoy")}
    finally:
        ip(f"netns del {third}")


def test_a_descriptor_of_something_else(netns: str) -> None:
    with opened("/etc/passwd") as descriptor, pytest.raises(NamespaceGoneError):
        host_links(descriptor, ["eth0"])


def test_a_namespace_that_only_the_descriptor_keeps(netns: str) -> None:
    brief = f"{netns}-brief"
    ip(f"netns add {brief}")
    with opened(RUN_NETNS / brief) as descriptor:
        ip(f"link add veth0 type veth peer name eth0 netns {brief}", f"netns del {brief}")
        assert host_links(descriptor, ["eth0"]) == {"eth0": HostLink(if_nametoindex("veth0"), "veth0")}
