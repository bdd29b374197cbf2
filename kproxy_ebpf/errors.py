"""The project's own errors. Each message is one sentence that names the thing and what to do.

`exit_code` follows sysexits(3), so that a supervisor can tell a bad flag from a missing kernel feature.
"""

from __future__ import annotations

import os

QUOTED_CHARS = 60


def quoted(value: object) -> str:
    """`value` as a message quotes it, short and at little cost: a few aliases make a short YAML file a huge object, and
    Python refuses to write huge numbers.
    """
    match value:
        case dict():
            return "an object"
        case list() | tuple() | set():
            return "a list"
        case str() | bytes():
            return repr(value[:QUOTED_CHARS])[:QUOTED_CHARS]
        case int() if value.bit_length() > 4 * QUOTED_CHARS:
            return f"a number of {value.bit_length()} bits"
    return repr(value)[:QUOTED_CHARS]


class KproxyError(Exception):
    """The root of all errors that the commands print without a traceback."""

    exit_code = os.EX_SOFTWARE


class UsageError(KproxyError):
    """A flag, a setting or a file given by the operator is wrong."""

    exit_code = os.EX_USAGE


class ConfigError(KproxyError):
    """A setting's value is not allowed, or a configuration file can't be read."""

    exit_code = os.EX_CONFIG


class SettingsAbsentError(ConfigError):
    """The settings that the operator named are not there, or are empty: nobody has chosen anything."""


class NodeError(KproxyError):
    """This node lacks something the datapath needs: root, bpffs, headers, a helper."""

    exit_code = os.EX_OSERR


class PermissionDeniedError(NodeError):
    """Not root, or a capability is missing."""

    exit_code = os.EX_NOPERM


class ClusterError(KproxyError):
    """The API server or the manifests folder can't be used."""

    exit_code = os.EX_NOINPUT


class BusyError(KproxyError):
    """Another daemon or another program holds what this one needs (a lock, a port)."""

    exit_code = os.EX_TEMPFAIL


class LoadError(KproxyError):
    """The programs can't be compiled or loaded; carries the compiler's or the verifier's words."""

    exit_code = os.EX_SOFTWARE


class MapFullError(KproxyError):
    """A table has no room for an entry. `table` is its name."""

    def __init__(self, table: str, max_entries: int) -> None:
        super().__init__(f"table {table} is full ({max_entries} entries): raise its limit and restart the daemon")
        self.table = table
        self.max_entries = max_entries
