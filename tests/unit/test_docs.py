"""The documents name what there is: files, folders, decisions, maps, settings and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from kproxy_ebpf.cli import COMMANDS
from kproxy_ebpf.config import Settings
from kproxy_ebpf.contract.maps import MAPS

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs/decisions"
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "bench/README.md", *ROOT.glob("docs/**/*.md")])
# What paths in the documents are relative to, besides the document's own folder.
ROOTS = [ROOT / folder for folder in (".", "bpf_src", "kproxy_ebpf", "kproxy_ebpf/datapath", "kproxy_ebpf/plan")]
ROOTS += [ROOT / "tests", ROOT / "bench"]
FOREIGN = {  # what looks like a path of ours and is none
    "default/web",
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kernel/bpf/bpf_lru_list.c",
    "request/response",
}
FILE_NAME = re.compile(r"[\w-]+\.(py|c|h|md|sh|yaml|toml)")
PATH = re.compile(r"[a-z_.][\w.*-]*/([\w.*-]+/)*[\w.*-]*")
LINE_MAX = 120

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(document: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\]\s+\(", "](", prose(document))):
        if not target.startswith(("http://", "https://")):
            yield target


def paths(document: Path) -> Iterator[str]:
    """Whatever stands in backquotes and looks like a path or a file's name."""
    for span in re.findall(r"`([^`\n]+)`", prose(document)):
        if (PATH.fullmatch(span) or FILE_NAME.fullmatch(span)) and span not in FOREIGN:
            yield span


def exists(document: Path, path: str) -> bool:
    if FILE_NAME.fullmatch(path) and any(ROOT.glob(f"[!.]*/**/{path}")):
        return True
    places = product([document.parent, *ROOTS], [path, f"{path}.py"])
    return any(any(folder.glob(name.rstrip("/"))) for folder, name in places)


def rows(document: Path, heading: str) -> list[str]:
    """The first cells of the tables below a heading, without backquotes."""
    below = re.split(r"^#+ ", document.read_text().split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in below.splitlines() if line.startswith("| ")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert [target for target in links(document) if not (document.parent / target.partition("#")[0]).exists()] == []


@each_document
def test_every_path_that_is_named_exists(document: Path) -> None:
    assert [path for path in paths(document) if not exists(document, path)] == []


@each_document
def test_lines_of_prose_end_in_time(document: Path) -> None:
    lines = enumerate(document.read_text().splitlines(), 1)
    assert [number for number, line in lines if len(line) > LINE_MAX and not line.startswith("|")] == []


def test_the_index_has_every_decision_by_its_title() -> None:
    wanted = []
    for record in sorted(DECISIONS.glob("0*.md")):
        number, title = record.read_text().split("\n", 1)[0].removeprefix("# ").split(": ", 1)
        assert record.name.startswith(f"{number}-")
        wanted.append(f"| [{number}]({record.name}) | {title} |")
    assert [line for line in (DECISIONS / "README.md").read_text().splitlines() if line.startswith("| [")] == wanted
    numbers = [int(line[3:7]) for line in wanted]
    assert numbers == sorted(set(numbers))


def test_every_package_has_its_paragraph() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = sorted(path.parent.name for path in ROOT.glob("kproxy_ebpf/*/__init__.py"))
    assert [name for name in packages if f"### `kproxy_ebpf/{name}/`" not in text] == []


def test_every_folder_of_sources_is_in_the_reading_order() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    names = [path.name for path in ROOT.glob("bpf_src/*/")]
    names += [path.parent.name for path in ROOT.glob("kproxy_ebpf/datapath/*/__init__.py")]
    assert [name for name in names if f"\n- `{name}/`" not in text] == []


def test_every_map_is_in_the_table() -> None:
    assert sorted(rows(ROOT / "docs/architecture.md", "The maps")) == sorted(row.name for row in MAPS)


def test_every_setting_and_command_is_in_the_operators_tables() -> None:
    operations = ROOT / "docs/operations.md"
    assert sorted(rows(operations, "Settings")) == sorted(Settings().plain())
    named = {row.split()[0] for row in rows(operations, "Commands")}
    assert named == set(COMMANDS)
