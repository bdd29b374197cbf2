"""The kernel headers that BCC compiles against. Any kernel's will do: the programs use stable structures only."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from kproxy_ebpf.errors import NodeError

_USR_SRC = Path("/usr/src")
_MODULES = Path("/lib/modules")
_CACHE = Path("/run/kproxy-ebpf/headers")


def find_headers(usr_src: Path = _USR_SRC) -> tuple[Path, ...]:
    """The folders that together make one tree of kernel headers, newest version first found.

    BCC_KERNEL_SOURCE names one complete tree. Debian splits a tree in two packages (-common and the architecture's);
    others ship one behind /lib/modules/<release>/build. Raises NodeError where there is none.
    """
    if named := os.environ.get("BCC_KERNEL_SOURCE"):
        if not (Path(named) / "include/linux").is_dir():
            raise NodeError(f"BCC_KERNEL_SOURCE={named} holds no kernel headers (include/linux is missing)")
        return (Path(named),)
    for common in sorted(usr_src.glob("linux-headers-*-common"), key=_version, reverse=True):
        stem = common.name.removesuffix("common")
        for own in sorted(usr_src.glob(f"{stem}*")):
            if own != common and (own / "include/generated").is_dir():
                return common, own
    built = _MODULES / os.uname().release / "build"
    if (built / "include/generated").is_dir():
        return (built,)
    package = f"linux-headers-{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(os.uname().machine, os.uname().machine) }"
    raise NodeError(
        f"no kernel headers are installed, and the programs are compiled on the node: apt install {package}"
    )


def headers_tree(usr_src: Path = _USR_SRC, cache: Path = _CACHE) -> Path:
    """One folder with a whole tree of headers; where they are split, a merged view that is made once per boot.

    Raises NodeError.
    """
    folders = find_headers(usr_src)
    if len(folders) == 1:
        return folders[0]
    tree = cache / folders[-1].name
    if not (tree / "include/linux").is_dir():
        shutil.rmtree(tree, ignore_errors=True)  # it shows headers that were removed
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix="new-") as temporary:
            merge(folders, Path(temporary) / "tree")
            with suppress(OSError):  # ENOTEMPTY: another daemon was faster
                (Path(temporary) / "tree").rename(tree)
    return tree


def merge(folders: tuple[Path, ...], into: Path) -> None:
    """Make `into` (a new folder) show what all `folders` hold: symbolic links, real folders only where they meet."""
    into.mkdir()
    for name in sorted({entry.name for folder in folders for entry in folder.iterdir()}):
        found = tuple(folder / name for folder in folders if (folder / name).exists())
        if len(found) > 1 and all(path.is_dir() for path in found):
            merge(found, into / name)
        else:
            (into / name).symlink_to(found[0])


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", folder.name)))
