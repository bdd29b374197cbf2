"""What the daemon leaves on disk for the commands and for its next start: its status and the last good settings.

The maps hold numbers only; names of Services, refused objects and their reasons come from the status. Each bpffs mount
has a folder of its own, so that the nodes of a lab keep apart.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_BPFFS = Path("/sys/fs/bpf")
STATE_ROOT = Path("/run/kproxy-ebpf")


def state_dir(bpffs: Path) -> Path:
    """The folder for the daemon that pins below `bpffs`: in /run, or beside a bpffs that is not the usual one."""
    bpffs = bpffs.absolute()
    return STATE_ROOT / "state" if bpffs == DEFAULT_BPFFS else bpffs.with_name(f"{bpffs.name}.state")


def cni_socket(bpffs: Path) -> Path:
    """Where the daemon that pins below `bpffs` listens for the CNI plugin; the first is the plugin's own default."""
    folder = STATE_ROOT if bpffs.absolute() == DEFAULT_BPFFS else state_dir(bpffs)
    return folder / "cni.sock"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` in one step: a reader sees the old content or the new one, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(json.dumps(content))  # json.dump goes piece by piece and takes three times as long
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """The content of `path`, or nothing where it is absent or unreadable: a status is never worth an error."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_status(bpffs: Path) -> dict[str, Any]:
    """What the daemon for `bpffs` wrote last, with ``running`` as of now; empty where none ever ran."""
    status = read_json(state_dir(bpffs) / "status.json")
    return {**status, "running": is_running(bpffs)} if status else {}


def is_running(bpffs: Path) -> bool:
    """True while a daemon holds the node's lock."""
    try:
        descriptor = os.open(bpffs / "kproxy-ebpf", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
