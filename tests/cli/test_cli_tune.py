"""`pbkv tune`, end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pbkv_cluster.core.config import load
from pbkv_cluster.simulator.tuning import tuning
from pbkv_cluster.simulator.tuning.knobs import Values
from pbkv_cluster.simulator.tuning.objective import Objective
from pbkv_cluster.simulator.tuning.result import CellName, Trial, Tuning
from tests.cli.agent_traces import write_generated_trace
from tests.cli.conftest import Pbkv

SHORT = ("--pressure", ".8", "--think-scale", ".02", "--concurrency", "4", "--host-ratio", "0", "--budget", "4")


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    return write_generated_trace(tmp_path / "tiny.jsonl", workflows=16, pauses=False)


def found(winner: float, held_out: float) -> Tuning:
    """The result of a search whose best candidate has these scores; the present settings score 1."""
    present: Values = {"cache.policy": "lfu", "cache.lfu_half_life_s": 100.0}
    best: Values = {"cache.policy": "pbkv-paper", "cache.gamma": 0.5, "predictor.horizon": 2}
    cell = CellName("tiny", 0.5, 0.51, 64)
    trials = Trial(present, (1.0,)), Trial(best, (winner,))
    return Tuning(Objective.TOKENS, (cell,), trials, (cell,), Trial(present, (1.0,)), Trial(best, (held_out,)))


def stand_in(monkeypatch: pytest.MonkeyPatch, result: Tuning | BaseException) -> None:
    def search(*_: Any) -> Tuning:
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(tuning, "tune", search)


@pytest.mark.parametrize("policies", ["continuum,retired-lru", "pbkv-paper"])
def test_writes_a_configuration_and_a_report(pbkv: Pbkv, trace_file: Path, tmp_path: Path, policies: str) -> None:
    out = tmp_path / "best.yaml"
    texts = []
    for _ in range(2):
        outcome = pbkv("tune", str(trace_file), *SHORT, "--policies", policies, "--out", str(out))
        assert outcome.code == 0, outcome.err
        texts.append((out.read_text(), (tmp_path / "best.json").read_text()))
    assert texts[0] == texts[1]
    assert "held-out" in outcome.out
    report = json.loads(texts[0][1])
    config = load(out).config.model_dump()
    for path, value in report["chosen"].items():
        section, name = path.split(".")
        assert config[section][name] == value
    assert sum(len(trial["scores"]) for trial in report["searched"]["trials"]) <= 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_file_contains_what_differs_and_why(
    pbkv: Pbkv, trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = tmp_path / "base.yaml", tmp_path / "out.yaml"
    base.write_text("engine:\n  gpu_blocks: 96\ncache:\n  policy: lfu\n  lfu_half_life_s: 100\n")
    monkeypatch.setenv("PBKV_REDIS_URL", "redis://:secret@db/0")
    stand_in(monkeypatch, found(1.2, 1.1))
    assert pbkv("tune", str(trace_file), "--config", str(base), "--out", str(out), "--set", "engine.threads=2").code == 0
    text = out.read_text()
    # Settings of the file and flags stay unless the winner changes them; those from the environment are not written.
    assert yaml.safe_load(text) == {
        "engine": {"gpu_blocks": 96, "threads": 2},
        "cache": {"policy": "pbkv-paper", "gamma": 0.5, "lfu_half_life_s": 100.0},
        "predictor": {"horizon": 2},
    }
    assert "gamma: 0.5  # default 0.7" in text
    assert "On held-out tasks: 1.1000, with the present settings 1.0000" in text


def test_a_winner_that_fails_on_held_out_tasks_leaves_the_present_settings(
    pbkv: Pbkv, trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.yaml"
    stand_in(monkeypatch, found(1.2, 1.0004))
    options = ("--set", "cache.policy=lfu", "--set", "cache.lfu_half_life_s=100")
    outcome = pbkv("tune", str(trace_file), "--out", str(out), *options, "--json", "-")
    assert json.loads(outcome.out)["accepted"] is False
    assert yaml.safe_load(out.read_text()) == {"cache": {"policy": "lfu", "lfu_half_life_s": 100.0}}
    assert "That is no gain" in out.read_text()
    stand_in(monkeypatch, found(1.2, 0.9))
    assert pbkv("tune", str(trace_file), "--out", str(out)).code == 0
    assert load(out).config.cache.policy == "lfu"


def test_an_interrupt_leaves_nothing_half_written(
    pbkv: Pbkv, trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.yaml"
    out.write_text("# as it was\n")
    before = sorted(tmp_path.iterdir())
    stand_in(monkeypatch, KeyboardInterrupt())
    assert pbkv("tune", str(trace_file), "--out", str(out)).code == 130
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_text() == "# as it was\n"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--policies", "nonsense"), "nonsense"),
        (("--policies", "oracle"), "policies: oracle"),
        (("--pressure", "high"), "--pressure"),
        (("--objective", "speed"), "--objective"),
        (("--budget", "1"), "budget"),
        (("--hold-out", "1"), "hold_out"),
        (("--train-share", ".9"), "train"),
        (("--out", "absent/folder/x.yaml"), "--out"),
        (("--out", "x.json"), "--out"),
        (("--json", "absent/folder/x.json"), "--json"),
        (("--set", "cache.gama=1"), "cache.gama"),
        (("--train", "absent.jsonl"), "absent.jsonl"),
        (("--cost-model", "absent.json"), "absent.json"),
    ],
)
def test_wrong_options_are_named(pbkv: Pbkv, trace_file: Path, options: tuple[str, ...], named: str) -> None:
    outcome = pbkv("tune", str(trace_file), *SHORT, *options)
    assert outcome.code == 2
    assert named in outcome.err


def test_a_trace_needs_enough_tasks_to_hold_some_out(pbkv: Pbkv, trace_file: Path, tmp_path: Path) -> None:
    first = [line for line in trace_file.read_text().splitlines() if json.loads(line)["workflow_id"].endswith("0000")]
    single = tmp_path / "single.jsonl"
    single.write_text("\n".join(first))
    outcome = pbkv("tune", str(single), *SHORT, "--out", str(tmp_path / "x.yaml"))
    assert outcome.code == 2
    assert "TRACE: single has too few tasks, 1" in outcome.err
