"""Programs that are compiled before a test needs them: ``python -P -m kproxy_ebpf.lab.compiled``.

What a test does beside a compiler takes several times as long, and so does the compiler. Run with PYTHONPATH, this
compiles the programs of another version of the project.
"""

from __future__ import annotations

from pathlib import Path

from kproxy_ebpf.datapath.generations.compile import Compiler
from kproxy_ebpf.datapath.generations.kept import default_folder, digest_of, find, keep
from kproxy_ebpf.datapath.generations.sources import Constants, KernelFeatures, read_source, source_folder
from kproxy_ebpf.lab.exclusive import exclusive


def compile_once(folder: Path, compiler: Compiler) -> None:
    """Compile what `folder` has not yet. Of several processes at the same time one does, the others wait for it.

    Raises LoadError, NodeError, UnfitError, OSError.
    """
    texts = read_source(source_folder(), Constants()).texts(KernelFeatures.here())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(folder):
        if find([folder], digest_of(texts)) is None:
            keep(folder, compiler.compile(texts))


if __name__ == "__main__":
    compile_once(default_folder(), Compiler())
