"""What `status` tells of a node."""

import json
from pathlib import Path

from click.testing import CliRunner

from kproxy_ebpf import cli
from kproxy_ebpf.cli.status import report_lines


def test_status_of_a_node_where_nothing_ever_ran(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.commands, ["status", "--bpffs", str(tmp_path), "-o", "json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["daemon"] == {"running": False}
    assert report["generation"] is None


def test_status_tells_of_a_refused_object_once() -> None:
    report = {
        "daemon": {
            "running": True,
            "version": "1",
            "node": "node1",
            "pid": 7,
            "refused": [{"object": "Service default/bad", "reason": "spec.ports: field required"}],
        },
        "health": {"status": 200, "errors": {}, "problems": {"refused": "1 refused, such as …", "source": "gone"}},
        "generation": "abc",
        "tables": {},
        "verdicts": {},
    }
    problems = [line for line in report_lines(report) if line.startswith("problem")]
    assert problems == [
        "problem     gone",
        "problem     Service default/bad is refused: spec.ports: field required",
    ]
