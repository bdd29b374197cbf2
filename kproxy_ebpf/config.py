"""The settings that may change while the daemon runs: flat keys, from a ConfigMap or a YAML file.

Every value arrives as text (a ConfigMap knows nothing else, and YAML would read ``off`` as False); `parse_settings` is
pure and lists every problem at once. A bad offer never changes what is in force, see `SettingsKeeper`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kproxy_ebpf.errors import QUOTED_CHARS, ConfigError, SettingsAbsentError, quoted
from kproxy_ebpf.linux.files import happenings, signature

MAX_FILE_BYTES = 1 << 20  # what a ConfigMap holds at most
MAX_DEPTH = 10
MAX_SENTENCES = 10

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the C parser where PyYAML has it


class Mode(StrEnum):
    """Which programs translate: none, the ones at tc, the ones at connect(), or both."""

    OFF = "off"
    TC = "tc"
    SOCKET = "socket"
    HYBRID = "hybrid"

    @property
    def is_on(self) -> bool:
        """True if new connections are translated."""
        return self is not Mode.OFF

    @property
    def has_tc(self) -> bool:
        """True if the programs at the pods' links translate new connections."""
        return self in (Mode.TC, Mode.HYBRID)

    @property
    def has_sockets(self) -> bool:
        """True if the programs at connect() translate new connections, where the node can have them."""
        return self in (Mode.SOCKET, Mode.HYBRID)


class Forwarding(StrEnum):
    """Who forwards a packet once it is translated: the host's stack, or the programs themselves."""

    STACK = "stack"
    REDIRECT = "redirect"


class NetworkPolicy(StrEnum):
    OFF = "off"
    AUDIT = "audit"
    ENFORCE = "enforce"


class Balancing(StrEnum):
    RANDOM = "random"
    MAGLEV = "maglev"


class CniChain(StrEnum):
    """Whether the daemon puts its plugin at the end of the node's list of CNI plugins."""

    NONE = "none"
    CHAIN = "chain"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


POD_INTERFACES = ("veth*", "cali*", "lxc*", "eni*", "azv*", "gke*")
"""What common CNI plugins name the host-side links of pods; an uplink is never named so."""


Network = IPv4Network | IPv6Network
CLUSTER_CIDRS_MAX = 64


class Settings(BaseModel):
    """One valid set of settings. The keys outside are these names with hyphens."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    mode: Mode = Mode.HYBRID
    forwarding: Forwarding = Forwarding.STACK
    network_policy: NetworkPolicy = NetworkPolicy.OFF
    balancing: Balancing = Balancing.RANDOM
    pod_interfaces: tuple[str, ...] = Field(default=POD_INTERFACES, min_length=1)
    cluster_cidr: tuple[Network, ...] = ()
    cni: CniChain = CniChain.NONE
    log_level: LogLevel = LogLevel.INFO

    @field_validator("pod_interfaces", "cluster_cidr", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part for part in re.split(r"[,\s]+", value) if part) if isinstance(value, str) else value

    @field_validator("pod_interfaces")
    @classmethod
    def _narrow_enough(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if fnmatchcase("lo", pattern) or not re.search(r"\w", pattern):
                raise ValueError(f"pattern {quoted(pattern)} would match links that are no pod's")
        return patterns

    @field_validator("cluster_cidr")
    @classmethod
    def _narrow_networks(cls, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        if len(networks) > CLUSTER_CIDRS_MAX:
            raise ValueError(f"{len(networks)} networks are too many")
        for network in networks:
            if network.prefixlen == 0:
                raise ValueError(f"{network} is more than any cluster")
            if network.is_link_local or getattr(network.network_address, "scope_id", None):
                raise ValueError(f"{network} is of one link, no pod network")
        return networks

    def is_pod_interface(self, link: str) -> bool:
        return any(fnmatchcase(link, pattern) for pattern in self.pod_interfaces)

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values under their outside keys."""
        return self.model_dump(mode="json", by_alias=True)

    def unserved(self) -> Iterator[str]:
        """What is asked for but not part of this version, one sentence each. Modes socket and hybrid are served as tc,
        which gives the same answers; so nobody has to know.
        """
        if self.network_policy is not NetworkPolicy.OFF:
            yield f"network-policy {self.network_policy.value}: this version has no network policies yet"


_ALLOWED = {
    "pod-interfaces": "link-name patterns such as veth*, cali*",
    "cluster-cidr": f"up to {CLUSTER_CIDRS_MAX} networks such as 10.244.0.0/16, fd00:244::/48, zeros behind the prefix",
}
_KEYS = {name.replace("_", "-"): field for name, field in Settings.model_fields.items()}


def parse_settings(mapping: Mapping[str, object]) -> Settings:
    """The settings that `mapping` (outside keys, text values) asks for; absent keys have their defaults.

    Raises ConfigError whose sentence names every bad key and the values that are allowed.
    """
    no_text = {key for key, value in mapping.items() if key in _KEYS and not _is_text(value)}
    sentences = [_not_allowed(key, mapping[key]) for key in no_text]
    try:
        settings = Settings.model_validate({key: value for key, value in mapping.items() if key not in no_text})
    except ValidationError as error:
        sentences += map(_sentence, error.errors()[:MAX_SENTENCES])
    if sentences:
        raise ConfigError("; ".join(dict.fromkeys(sentences)))
    return settings


def _is_text(value: object) -> bool:
    """True for a text, a number or a list of such. Anything else goes to no validator: some write out what they refuse,
    and aliases can make a short YAML file enormous.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(part, (str, int)) for part in parts)


def _sentence(detail: Any) -> str:
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        key = key[:QUOTED_CHARS]
        close = get_close_matches(key, _KEYS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys are {_enumerated(_KEYS)}"
        return f"setting {key} is unknown: {hint}"
    if detail["type"] == "value_error":
        return f"setting {key}: {detail['ctx']['error']}: allowed are {_allowed(key)}"
    return _not_allowed(key, detail["input"])


def _not_allowed(key: str, value: object) -> str:
    return f"setting {key} can't be {quoted(value)}: allowed are {_allowed(key)}"


def _allowed(key: str) -> str:
    members = getattr(_KEYS[key].annotation, "__members__", None)
    return _enumerated(member.value for member in members.values()) if members else _ALLOWED[key]


def _enumerated(words: Any) -> str:
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else str(last)


def read_settings_file(path: Path) -> dict[str, object]:
    """The raw keys of a YAML file, every scalar as text. Raises ConfigError, SettingsAbsentError for an empty file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"settings file {path} is larger than {MAX_FILE_BYTES} bytes")
        _check_depth(path, text)
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  # makes only text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} can't be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"settings file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not content:
        raise SettingsAbsentError(f"settings file {path} holds no settings")
    if not isinstance(content, dict):
        raise ConfigError(f"settings file {path} must hold keys and values, such as mode: hybrid")
    return content


def _check_depth(path: Path, text: str) -> None:
    """Walk the flat events: both parsers compose by recursion, and one of them crashes. Raises ConfigError."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"settings file {path} is not flat: write keys and values, such as mode: hybrid")


class SettingsKeeper:
    """The settings in force, and what is wrong with those last offered.

    `last_good` are those of an earlier start. Without them, `has_settings` is False until the first good offer, or
    until it is known that there are none: then the defaults are in force, which is a problem, too.
    """

    def __init__(self, last_good: Settings | None = None) -> None:
        self.current = last_good or Settings()
        self.has_settings = last_good is not None
        self.error: ConfigError | None = None
        self._listeners: list[Callable[[SettingsKeeper], None]] = []

    def listen(self, listener: Callable[[SettingsKeeper], None]) -> None:
        """Call `listener` after every offer, good or bad."""
        self._listeners.append(listener)

    def offer(self, read: Callable[[], Mapping[str, object]]) -> None:
        """Take what `read` returns if it is valid; else keep the last good settings and remember the error.

        Mode off is the operator's switch in an emergency: only another value of `mode` ends it, never the lack of one.
        """
        try:
            offered = read()
            if self.has_settings and self.current.mode is Mode.OFF:
                _require_mode(offered)
            self.current = parse_settings(offered)
            self.has_settings, self.error = True, None
        except SettingsAbsentError as error:
            self.has_settings, self.error = True, error
        except ConfigError as error:
            self.error = error
        for listener in self._listeners:
            listener(self)


def _require_mode(offered: Mapping[str, object]) -> None:
    if "mode" not in offered:
        raise ConfigError(f"setting mode is off and can't be left out: give it a value, {_allowed('mode')}")


class SettingsFile:
    """A YAML file as the source of settings. inotify says when to look; what has changed is told by comparing."""

    def __init__(self, path: Path, keeper: SettingsKeeper) -> None:
        self._path, self._keeper = path, keeper
        self._seen: tuple[int, ...] | None = None

    def read(self) -> None:
        """Offer the file if it is not as it was at the last look; an absent one is offered as an error."""
        seen = signature(self._path)
        if seen != self._seen:
            self._seen = seen
            self._keeper.offer(lambda: read_settings_file(self._path))

    async def follow(self) -> None:
        """Look whenever something happens in the folder, and now and then; for editors and ConfigMap mounts replace
        files, and folders too. Never returns.
        """
        async for _ in happenings(self._path.parent):
            self.read()
