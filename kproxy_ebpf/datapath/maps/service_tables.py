"""The service tables of one family, as the daemon and the commands read and write them."""

from __future__ import annotations

from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import Backends, Slots
from kproxy_ebpf.datapath.maps.packing import codec
from kproxy_ebpf.model.service_tables import TableContents, TableWrites


class ServiceMaps:
    """The service tables of one address family. Keeps the maps open; `close` when done."""

    def __init__(self, generation: Generation, family: int) -> None:
        self.family = family
        self._codec = codec(family)
        self._frontends = generation.map("frontends", family)
        self._source_ranges = generation.map("source_ranges", family)
        self._slots = Slots(generation.map("slots", family))
        self._backends = Backends(generation.map("backends", family), family)

    def read(self) -> TableContents:
        """What the tables hold. Raises OSError."""
        contents = TableContents()
        for keys, values in self._frontends.chunks():
            contents.frontends |= self._codec.unpack_frontends(keys, values)
        for keys, _ in self._source_ranges.chunks():
            contents.source_ranges |= self._codec.unpack_source_ranges(keys)
        ranges = [(entry.slot_base, entry.slot_count) for entry in contents.frontends.values() if entry.slot_count]
        contents.slots = self._slots.read(ranges)
        contents.backends = {index: self._codec.unpack_backend(value) for index, value in self._backends.read()}
        return contents

    def apply(self, writes: TableWrites) -> None:
        """Perform `writes` in the order of their fields. Raises MapFullError (what came before is written), OSError.

        Writing the same again is harmless, so a failed call may be repeated.
        """
        if writes.backends:
            self._backends.write({index: self._codec.pack_backend(b) for index, b in writes.backends.items()})
        if writes.slots:
            self._slots.write(writes.slots)
        source_ranges = self._codec.pack_source_ranges(writes.source_ranges)
        self._source_ranges.update_batch(source_ranges, bytes(U32.size * len(writes.source_ranges)))
        self._frontends.update_batch(*self._codec.pack_frontends(writes.frontends))
        for key in writes.removed_frontends:
            self._frontends.delete(self._codec.pack_frontend_keys((key,)))
        for source_range in writes.removed_source_ranges:
            self._source_ranges.delete(self._codec.pack_source_ranges((source_range,)))
        if writes.backend_states:
            self._backends.write_states(writes.backend_states)

    def close(self) -> None:
        for map_ in (self._frontends, self._source_ranges, self._slots.map, self._backends.map):
            map_.close()
