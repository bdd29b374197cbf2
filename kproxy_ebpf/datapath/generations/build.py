"""From the C sources to a pinned generation: what was compiled before is loaded, all else is compiled first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from kproxy_ebpf.datapath.generations.compile import Compiler
from kproxy_ebpf.datapath.generations.kept import default_folder, digest_of, find, keep
from kproxy_ebpf.datapath.generations.load import load
from kproxy_ebpf.datapath.generations.object_file import ObjectFile, UnfitError, read, write
from kproxy_ebpf.datapath.generations.sources import (
    Constants,
    KernelFeatures,
    SourceText,
    kernels,
    read_source,
    source_folder,
)
from kproxy_ebpf.errors import LoadError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where compiled programs come from: the folder that they are kept in, those that were shipped, the compiler."""

    kept: Path = field(default_factory=default_folder)
    compiler: Compiler = field(default_factory=Compiler)

    @property
    def folders(self) -> Sequence[Path]:
        """Where there may be compiled programs."""
        return self.kept, shipped_folder()

    def build(self, source: SourceText, folder: Path, previous: Path | None) -> None:
        """Load the programs of `source` and pin everything in `folder`, an empty generation.

        Maps of equal shape and layout are taken over from `previous`. Raises LoadError with the compiler's or the
        verifier's last words, NodeError without headers or bcc where they are needed.
        """
        texts = source.texts(KernelFeatures.here())
        found = find(self.folders, digest_of(texts))
        if found is not None:
            try:
                load(found, source.constants, folder, previous, self.compiler.go_on)
            except LoadError as refusal:
                self.compiler.go_on()
                log.warning("compiled programs can't be loaded: they are compiled anew", error=str(refusal))
                _empty(folder)
            else:
                return
        load(self._compiled(texts), source.constants, folder, previous, self.compiler.go_on)

    def _compiled(self, texts: dict[int, str]) -> ObjectFile:
        """Compile, and keep what comes of it where that can be done."""
        objects = self.compiler.compile(texts)
        try:
            keep(self.kept, objects)
        except UnfitError as reason:
            log.warning(f"compiled programs are not kept, the next start compiles them again: {self.kept} {reason}")
        except OSError as error:
            log.warning(
                "compiled programs can't be kept, the next start compiles them again",
                folder=str(self.kept),
                error=error.strerror,
            )
        return read(write(objects), objects.digest)  # what is loaded is what a file says, kept or not


def shipped_folder() -> Path:
    """Where an image has its compiled programs: beside the C sources. Raises NodeError."""
    return source_folder().parent / "compiled"


def compile_for_all_kernels(folder: Path, constants: Constants, done: Callable[[int, int], None]) -> None:
    """Write programs for every kernel to `folder`; no privilege is needed. `done`: how many, and of how many.

    Raises LoadError, NodeError, UnfitError, OSError.
    """
    source, compiler = read_source(source_folder(), constants), Compiler()
    variants = [source.texts(kernel) for kernel in kernels()]
    for number, texts in enumerate(variants, start=1):
        keep(folder, compiler.compile(texts), at_most=len(variants))
        done(number, len(variants))


def _empty(folder: Path) -> None:
    for pin in (*(folder / "maps").iterdir(), *(folder / "programs").iterdir()):
        pin.unlink()
