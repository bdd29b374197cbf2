"""Attaching the programs to links: TCX where the kernel has it (6.6), else clsact.

TCX links are pinned as links/<ifindex>-<program>, so they outlive the daemon. Ours are known by their pins and filter
names; what others attached is left alone. Everything here blocks for milliseconds (the kernel waits until no CPU runs
the old list of programs) and belongs into a thread without a running loop.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from pathlib import Path
from typing import Self

from kproxy_ebpf.contract.maps import FAMILIES, pinned_name
from kproxy_ebpf.datapath.attach.clsact import Clsact
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.bpf import Link

_ATTACH_TYPES = {"to_pod": 47, "from_pod": 46, "to_uplink": 47, "from_uplink": 46}  # BPF_TCX_EGRESS, BPF_TCX_INGRESS
AT_PODS = ("to_pod", "from_pod")
"""The programs at a pod's link, in order: replies must be translated before anything is sent that they answer."""
AT_UPLINKS = ("to_uplink", "from_uplink")


class Method(StrEnum):
    AUTO = "auto"
    TCX = "tcx"
    CLSACT = "clsact"


class Attacher:
    """Attaches one generation's `programs` to links of this network namespace. `method` may force TCX or clsact.

    Programs that another attacher or anybody else has attached are left alone.
    """

    def __init__(
        self, generation: Generation, method: Method = Method.AUTO, programs: tuple[str, ...] = AT_PODS
    ) -> None:
        self._links = generation.root / "links"
        self._order = [(name, family) for name in programs for family in FAMILIES]
        self._clsact = Clsact(self._links, programs)
        self._method = method
        self._open_programs(generation)

    def attach(self, ifindex: int) -> Method:
        """Attach all programs to a link, or bring those attached up to date. Returns how.

        Raises OSError (ENODEV where the link is gone), NodeError where the forced method is not to be had.
        """
        if self._method is not Method.CLSACT:
            try:
                self._attach_tcx(ifindex)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                if self._method is Method.TCX:
                    raise NodeError("this kernel has no TCX (Linux 6.6): choose clsact or auto") from error
                self._method = Method.CLSACT
            else:
                self._clsact.detach(ifindex)
                return Method.TCX
        self._clsact.attach(ifindex, self._programs)
        self._detach_tcx(ifindex)
        return Method.CLSACT

    def detach(self, ifindex: int) -> None:
        """Take this attacher's programs off a link, whether or not the link still exists."""
        self._detach_tcx(ifindex)
        self._clsact.detach(ifindex)

    def attached(self) -> dict[int, Method]:
        """The links that carry this attacher's programs."""
        by_clsact = dict.fromkeys(self._clsact.attached(), Method.CLSACT)
        return by_clsact | dict.fromkeys(self._pinned(), Method.TCX)

    def is_attached(self, ifindex: int) -> bool:
        """True if the kernel has all of this attacher's programs at that link. Raises OSError."""
        if self._clsact.carries(ifindex, (pinned_name(*key) for key in self._order)):
            return True
        return all(self._runs(ifindex, *key) for key in self._order)

    def swap(self, generation: Generation) -> None:
        """Put another generation's programs in the place of those attached; no packet meets neither."""
        self._close_programs()
        self._open_programs(generation)
        for ifindex, method in self.attached().items():
            try:
                if method is Method.TCX:
                    self._attach_tcx(ifindex)
                else:
                    self._clsact.attach(ifindex, self._programs)
            except OSError as error:
                if error.errno != errno.ENODEV:  # the link went away
                    raise

    def prune(self) -> None:
        """Remove the pins of links whose device is gone, which happened while no daemon ran."""
        for pin in self._pins():
            with Link.open(pin) as link:
                if link.info.ifindex == 0:
                    pin.unlink()
        self._clsact.prune()

    def close(self) -> None:
        self._close_programs()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach_tcx(self, ifindex: int) -> None:
        for name, family in self._order:
            pin, program = self._pin(ifindex, name, family), self._programs[name, family]
            if pin.exists() and self._update(pin, ifindex, name, family):
                continue
            with Link.create(program, ifindex, _ATTACH_TYPES[name]) as link:
                link.pin(pin)

    def _update(self, pin: Path, ifindex: int, name: str, family: int) -> bool:
        """Let a pinned link run the present program. False, and the pin removed, where its device was another one."""
        with Link.open(pin) as link:
            info = link.info
            if info.ifindex != ifindex:
                pin.unlink()
                return False
            if info.program_id != self._program_ids[name, family]:
                link.update(self._programs[name, family])
            return True

    def _runs(self, ifindex: int, name: str, family: int) -> bool:
        pin = self._pin(ifindex, name, family)
        if not pin.exists():
            return False
        with Link.open(pin) as link:
            return link.info.ifindex == ifindex

    def _detach_tcx(self, ifindex: int) -> None:
        for name, family in reversed(self._order):
            pin = self._pin(ifindex, name, family)
            if pin.exists():
                with Link.open(pin) as link:
                    link.detach()
                pin.unlink()

    def _pinned(self) -> set[int]:
        return {int(pin.name.partition("-")[0]) for pin in self._pins()}

    def _pins(self) -> list[Path]:
        names = {pinned_name(name, family) for name, family in self._order}
        return [pin for pin in self._links.iterdir() if pin.name.partition("-")[2] in names]

    def _pin(self, ifindex: int, name: str, family: int) -> Path:
        return self._links / f"{ifindex}-{pinned_name(name, family)}"

    def _open_programs(self, generation: Generation) -> None:
        self._programs = {(name, family): generation.program(name, family) for name, family in self._order}
        self._program_ids = {key: program.id for key, program in self._programs.items()}

    def _close_programs(self) -> None:
        for program in self._programs.values():
            program.close()
