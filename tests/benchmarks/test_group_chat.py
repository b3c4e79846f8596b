"""The benchmark of a group chat keeps its runs, and reports on the seeds that are complete."""

import argparse
from pathlib import Path

import pytest

from benchmarks.report import Report
from benchmarks.serving.group_chat import add_options, run


def chat(*given: str) -> Report:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    add_options(parser)
    return run(parser.parse_args(("--chat-virtual", "--chat-workflows", "17", "--chat-ratios", ".1", *given)))


def test_what_has_run_is_not_run_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    first = chat("--contenders", "cold", "--chat-rows", str(rows))
    lines = rows.read_text().splitlines()
    assert len(lines) == 2
    value = {figure.name: figure.value for figure in first.figures}
    assert (
        0
        < value["host ratio 0.1, cold: recomputed over LRU's"]
        == value["host ratio 0.1, cold: recomputed over LRU's, worst seed"]
    )
    assert chat("--contenders", "cold", "--chat-rows", str(rows)) == first
    assert rows.read_text().splitlines() == lines
    alone = chat("--contenders", "lru", "--chat-rows", str(rows))
    assert [figure.name for figure in alone.figures] == ["host ratio 0.1: seeds", "host ratio 0.1: LRU recomputes"]
    assert rows.read_text().splitlines() == lines


def test_unknown_contenders_are_named() -> None:
    with pytest.raises(SystemExit, match="nobody"):
        chat("--contenders", "nobody")
