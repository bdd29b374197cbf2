"""Migrates the tables of one generation to the next, field by field where the layouts differ.

`old` and `new` are the folders of two generations; the new one is of this version. A table is not migrated if its
layout is not known or a field has another size; the log names it.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path

import structlog

from kproxy_ebpf.contract.maps import FAMILIES, FLOW_TABLES, SERVICE_TABLES, pinned_name
from kproxy_ebpf.datapath.generations.migrate_flows import FlowMigration
from kproxy_ebpf.datapath.generations.migrate_table import NotMigratedError, TableMigration
from kproxy_ebpf.linux.bpf import Map

log = structlog.get_logger(__name__)


def copy_service_tables(old: Path, new: Path) -> bool:
    """Copy the service tables that are not shared. False, and nothing is copied, if one of them can't be migrated: the
    tables point at one another.
    """
    with ExitStack() as stack:
        migrations = []
        for name, family in product(SERVICE_TABLES, FAMILIES):
            try:
                migration = stack.enter_context(TableMigration(old, new, name, family))
                migration.require_room()
            except NotMigratedError as reason:
                _tell(old, pinned_name(name, family), reason)
                return False
            migrations.append(migration)
        for migration in migrations:
            migration.copy()
    return True


def copy_settings(old: Path, new: Path) -> None:
    """Copy the live settings if they are not shared: new connections meet the same switches as before."""
    try:
        with TableMigration(old, new, "settings") as migration:
            migration.copy()
    except NotMigratedError as reason:
        _tell(old, "settings", reason)


def copy_flows(old: Path, new: Path) -> None:
    """Copy the flow tables that are not shared to `new`, which is not in use yet."""
    for name, family in product(FLOW_TABLES, FAMILIES):
        with (
            suppress(NotMigratedError),
            _migration(old, new, name, family) as migration,
        ):  # `copy_missing_flows` will tell
            migration.copy()


def copy_missing_flows(old: Path, new: Path) -> bool:
    """Add to `new`, which is in use, the entries that it lacks or knows less of. False if flows can't be migrated."""
    copied = {(name, family): _copy_missing(old, new, name, family) for name, family in product(FLOW_TABLES, FAMILIES)}
    return all(copied["flows", family] for family in FAMILIES)


def shares_table(name: str, old: Path, new: Path) -> bool:
    """True if the programs of both generations use the same tables of that name."""
    try:
        return all(_id(old, name, family) == _id(new, name, family) for family in FAMILIES)
    except FileNotFoundError:
        return False


def _migration(old: Path, new: Path, name: str, family: int) -> TableMigration:
    return (FlowMigration if name == "flows" else TableMigration)(old, new, name, family)


def _copy_missing(old: Path, new: Path, name: str, family: int) -> bool:
    try:
        with _migration(old, new, name, family) as migration:
            migration.copy_missing()
    except NotMigratedError as reason:
        _tell(old, pinned_name(name, family), reason)
        return False
    return True


def _tell(old: Path, table: str, reason: NotMigratedError) -> None:
    log.warning("a table is not carried over", table=table, generation=old.name, reason=str(reason))


def _id(generation: Path, name: str, family: int) -> int:
    with Map.open(generation / "maps" / pinned_name(name, family)) as table:
        return table.info.id
