"""Lists of plugins, with ours and without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.cni.conflist import (
    PLUGIN,
    ConflistError,
    entry_of,
    has_plugin,
    is_multus,
    with_plugin,
    without_plugin,
)

CALICO = """{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "mtu": 1.50e3,
      "ipam": {"type": "calico-ipam", "subnets": ["}", "]"]}
    },
    {"type": "portmap", "snat": true}
  ]
}
"""
OURS = entry_of()


def types(text: str) -> list[str]:
    return [plugin["type"] for plugin in json.loads(text)["plugins"]]


def test_nothing_changes_but_the_end_of_the_list() -> None:
    assert with_plugin(CALICO, OURS) == CALICO.replace(
        '"snat": true}', '"snat": true},\n    {"type": "kproxy-ebpf-cni"}'
    )


def test_a_list_that_we_have_left_is_what_it_was() -> None:
    changed = with_plugin(CALICO, OURS)
    assert has_plugin(changed)
    assert with_plugin(changed, OURS) == changed
    assert without_plugin(changed) == CALICO
    assert without_plugin(CALICO) == CALICO


names = st.sampled_from(["ptp", "bridge", "portmap", "kproxy-ebpf-cni"])


@given(
    st.lists(st.fixed_dictionaries({"type": names}, optional={"a": st.integers() | st.text()}), min_size=1, max_size=5),
    st.sampled_from([None, 2, "\t"]),
)
def test_any_list(plugins: list[dict[str, Any]], indent: int | str | None) -> None:
    text = json.dumps({"cniVersion": "1.0.0", "plugins": plugins, "name": "x"}, indent=indent)
    others = [plugin for plugin in plugins if plugin["type"] != PLUGIN]
    if not others:
        with pytest.raises(ConflistError, match="no plugin but"):
            without_plugin(text)
        return
    assert json.loads(without_plugin(text)) == {"cniVersion": "1.0.0", "plugins": others, "name": "x"}
    content = json.loads(changed := with_plugin(text, OURS))
    assert [plugin for plugin in content["plugins"] if plugin["type"] != PLUGIN] == others
    assert content["plugins"].count(OURS) == types(changed).count(PLUGIN) == 1
    assert content["plugins"][0] != OURS
    assert with_plugin(changed, OURS) == changed


def test_another_agents_plugin_behind_ours_stays_there() -> None:
    text = '{"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}, {"type": "kproxy-ebpf-cni"}, {"type": "istio-cni"}]}'
    assert with_plugin(text, OURS) == text


def test_an_entry_of_another_socket_is_replaced() -> None:
    text = with_plugin(CALICO, entry_of("/run/other.sock"))
    assert with_plugin(text, OURS) == with_plugin(CALICO, OURS)


REFUSED = {
    "": "no JSON",
    '{"cniVersion": "1.0.0", "plugins": [': "no JSON",
    "[]": "no JSON object",
    '{"cniVersion": "1.0.0", "type": "ptp"}': "single plugin",
    '{"cniVersion": "1.0.0", "plugins": []}': "no plugins",
    '{"cniVersion": "1.0.0", "plugins": [{"name": "x"}]}': "without a type",
    '{"cniVersion": "1.0.0", "plugins": ["ptp"]}': "without a type",
    '{"cniVersion": "9.0.0", "plugins": [{"type": "ptp"}]}': "cniVersion '9.0.0' is unknown",
    '{"plugins": [{"type": "ptp"}]}': "cniVersion '0.1.0' is unknown",
    '{"cniVersion": {}, "plugins": [{"type": "ptp"}]}': "cniVersion an object is unknown",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_what_we_can_not_be_put_into(text: str, reason: str) -> None:
    with pytest.raises(ConflistError, match=reason):
        with_plugin(text, OURS)
    assert not has_plugin(text)


@pytest.mark.parametrize(
    ("text", "multus"),
    [
        ('{"type": "multus", "delegates": []}', True),
        ('{"type": "multus-shim"}', True),
        ('{"cniVersion": "1.0.0", "plugins": [{"type": "multus"}]}', True),
        (CALICO, False),
        ('{"plugins": []}', False),
        ("{", False),
        ("[1]", False),
    ],
)
def test_multus(text: str, multus: bool) -> None:
    assert is_multus(text) is multus
