"""A list of CNI plugins (a .conflist) as text: with our plugin at its end, and without it.

Nothing else in the text changes: a list that we have been in and have left is what it was, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kproxy_ebpf.cni.json_text import elements, members, parse
from kproxy_ebpf.cni.protocol import CniError, version_of

PLUGIN = "kproxy-ebpf-cni"
SINGLE = "it is a single plugin, no list: put the plugin into a .conflist, in a list named plugins"
MULTUS = ("multus", "multus-shim")
"""Plugins that only ask others: behind them stands the list that wires pods."""


class ConflistError(ValueError):
    """Why our plugin can't stand in a list."""


def entry_of(socket: str = "") -> dict[str, str]:
    """Our element of a list; `socket` where the daemon is not where the plugin looks for it by itself."""
    return {"type": PLUGIN, "socket": socket} if socket else {"type": PLUGIN}


def has_plugin(text: str) -> bool:
    """True if our plugin stands in the list; False also for what is no list."""
    try:
        return bool(_places_of_ours(_read(text)))
    except ConflistError:
        return False


def is_multus(text: str) -> bool:
    """True if Multus is the plugin, or the first one of the list."""
    try:
        content = parse(text)
    except ValueError:
        return False
    if isinstance(content, dict) and isinstance(content.get("plugins"), list) and content["plugins"]:
        content = content["plugins"][0]
    return isinstance(content, dict) and content.get("type") in MULTUS


def with_plugin(text: str, entry: Mapping[str, str]) -> str:
    """The list with our plugin behind all others; the same text where it stands behind another already. Raises
    ConflistError.
    """
    content = _read(text)
    ours = _places_of_ours(content)
    if len(ours) == 1 and ours[0] > 0 and content["plugins"][ours[0]] == entry:
        return text
    try:
        version_of(content)
    except CniError as error:
        raise ConflistError(error.message) from None
    text = without_plugin(text)
    last = elements(text, members(text)["plugins"].start)[-1]
    before = text[: last.start].rstrip()
    indent = text[len(before) : last.start]
    return f"{text[: last.stop]},{indent}{json.dumps(entry)}{text[last.stop :]}"


def without_plugin(text: str) -> str:
    """The list without our plugin. Raises ConflistError."""
    while ours := _places_of_ours(content := _read(text)):
        if len(content["plugins"]) == 1:
            raise ConflistError(f"it has no plugin but {PLUGIN}")
        places = elements(text, members(text)["plugins"].start)
        at = ours[0]
        cut = slice(places[at - 1].stop, places[at].stop) if at else slice(places[0].start, places[1].start)
        text = text[: cut.start] + text[cut.stop :]
    return text


def _read(text: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except ValueError as error:
        raise ConflistError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConflistError("it is no JSON object")
    plugins = content.get("plugins")
    if not isinstance(plugins, list):
        raise ConflistError(SINGLE)
    if not plugins or not all(isinstance(plugin, dict) and plugin.get("type") for plugin in plugins):
        raise ConflistError("it has no plugins, or one without a type")
    return content


def _places_of_ours(content: Mapping[str, Any]) -> list[int]:
    return [number for number, plugin in enumerate(content["plugins"]) if plugin["type"] == PLUGIN]
