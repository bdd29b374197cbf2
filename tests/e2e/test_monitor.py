"""`monitor` tells of connections as they are made."""

from __future__ import annotations

import json
import subprocess
import threading

import pytest

from kproxy_ebpf.lab.daemon import COMMAND
from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs[:1])


@pytest.fixture
def events(world):
    """What `monitor` has printed so far."""
    command = [COMMAND, "monitor", "--bpffs", world.daemon.bpffs, "-o", "json"]
    process = world.node.popen(command, stdout=subprocess.PIPE)
    printed = []
    reader = threading.Thread(target=lambda: printed.extend(map(json.loads, process.stdout)), daemon=True)
    reader.start()
    yield printed
    assert world.node.end(process) == 0
    reader.join()
    process.stdout.close()


def test_a_connection_is_one_event_with_both_addresses(world, service, family, events):
    def told():
        ask(world.client, service.vip(family), 80)
        return [event for event in events if event["verdict"] == "balanced"]

    event = until(told, "an event about a connection")[0]
    assert service.vip(family) in event["destination"]
    assert world.webs[0].address(family) in event["to_destination"]
    assert world.client.address(family) in event["source"]
    assert (event["protocol"], event["link"], event["direction"]) == ("TCP", world.client.host_link, "from_pod")
