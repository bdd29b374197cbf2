"""What is switched while programs run."""

from __future__ import annotations

from harness import u32

from kproxy_ebpf.contract.layouts import EventsLevel, Settings, Switches
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.settings import LiveSettings


def test_live_settings_are_written_one_by_one(generation: Generation) -> None:
    with generation.map("settings") as settings, LiveSettings(generation) as live:
        for level, switches in ((EventsLevel.ALL, Switches.TC), (EventsLevel.OFF, Switches.TC | Switches.SOCKET)):
            live.tell(level)
            live.switch(switches)
            assert settings.lookup(u32(0)) == bytes(Settings(events_level=level, switches=switches))
            assert live.switches() == switches
