"""Where tests lie, what they share, and how long a module may be."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TEST_MODULES = sorted(TESTS.rglob("test_*.py"))
SHARED_MODULES = sorted(
    path for path in TESTS.rglob("*.py") if path not in TEST_MODULES and path.stem not in ("conftest", "__init__")
)
LONGEST = 330
GENERATED = {ROOT / "kproxy_ebpf/contract/layouts.py"}  # as long as contract.h makes it
SOURCES = sorted(
    path
    for folder, suffixes in (("kproxy_ebpf", {".py"}), ("bpf_src", {".c", ".h"}), ("cni", {".c"}), ("tests", {".py"}))
    for path in (ROOT / folder).rglob("*")
    if path.suffix in suffixes and path not in GENERATED
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def module_of(path: Path) -> str | None:
    """The module or package that a file of tests/unit is named after, which may add a subject of its own to the name.

    tests/unit/plan/tables/test_services_restart.py tests plan/tables/services.py. tests/unit/bench tests bench/,
    tests/unit/test_docs.py tests docs/.
    """
    folder = path.parent.relative_to(TESTS / "unit")
    package = ROOT / folder if folder.parts[:1] == ("bench",) else ROOT / "kproxy_ebpf" / folder
    modules = {each.stem for each in package.glob("*.py")} | {each.parent.name for each in package.glob("*/*.py")}
    if package == ROOT / "kproxy_ebpf":
        modules |= {each.name for each in ROOT.iterdir() if each.is_dir()}
    words = path.stem.split("_")[1:]
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in names if name in modules), None)


def test_no_module_imports_a_test_module() -> None:
    """What two tests share lies beside them, in a module without tests or in conftest.py."""
    forbidden = {path.stem for path in TEST_MODULES} | {"conftest", "tests"}
    found = {path: imported(path) & forbidden for path in TESTS.rglob("*.py")}
    assert {name_of(path): names for path, names in found.items() if names} == {}


def test_a_unit_test_is_named_after_the_module_that_it_tests() -> None:
    unit = set((TESTS / "unit").rglob("test_*.py")) - {Path(__file__)}
    assert unit
    assert [name_of(path) for path in sorted(unit) if module_of(path) is None] == []


def test_shared_modules_can_be_told_apart() -> None:
    """All tests see them by their bare names."""
    names = Counter(path.stem for path in SHARED_MODULES)
    assert [name for name, count in names.items() if count > 1 or name in sys.stdlib_module_names] == []


def test_a_module_can_be_read_in_one_go() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
