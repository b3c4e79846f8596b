"""`pbkv simulate` and `pbkv calibrate`, end to end."""

import json
import re
import sys
from pathlib import Path

import pytest

from pbkv_cluster.cli.main import main
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.machines import machine_names
from tests.cli.agent_traces import write_generated_trace


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    return write_generated_trace(tmp_path / "tiny.jsonl", workflows=12, pauses=True)


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, args)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


COLUMNS = [
    *(
        "workload",
        "pressure",
        "policy",
        "seed",
        "capacity_blocks",
        "host_blocks",
        "recomputed_tokens",
        "over_lru",
        "gap_closed",
    ),
    *("latency_mean_s", "latency_p90_s", "ttft_mean_s", "hit_any", "hit_gpu", "hit_infinite", "time_shares", "guard_lru_share"),
]
SHORT = ("--pressure", ".8", "--think-scale", ".02", "--concurrency", "4")


def test_a_disk_is_simulated_below_the_host_and_needs_one(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.json"
    disk = ("--disk-ratio", "4", "--disk-gbps", "5", "--disk-latency-ms", ".2", "--set", "cache.stage=true")
    assert run(trace_file, *SHORT, "--policies", "lru,pbkv", "--host-ratio", ".5", *disk, "--json", target) == 0
    rows = json.loads(target.read_text())
    assert [(row["host_blocks"] * 8, row["disk_blocks"]) for row in rows] == [(4 * row["capacity_blocks"],) * 2 for row in rows]
    assert all(row["stage_used_tokens"] <= row["staged_tokens"] for row in rows)
    assert rows[0]["staged_tokens"] == 0, "LRU stages nothing"
    capsys.readouterr()
    assert run(trace_file, *SHORT, "--host-ratio", "0", "--disk-ratio", "4") == 2
    assert "disk_ratio" in capsys.readouterr().err
    for wrong in (("--disk-gbps", "0"), ("--disk-gbps", "nan"), ("--disk-latency-ms", "-1")):
        assert run(trace_file, *SHORT, "--disk-ratio", "4", *wrong) == 2
        assert wrong[0] in capsys.readouterr().err
    assert run(trace_file, *SHORT, "--disk-gbps", "5") == 2
    assert "--disk-ratio" in capsys.readouterr().err


@pytest.mark.parametrize(("logged", "scale"), [(True, "0"), (False, "1")])
def test_pauses_are_added_by_themselves_only_where_none_are_logged_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logged: bool, scale: str
) -> None:
    file = write_generated_trace(tmp_path / "tiny.jsonl", workflows=12, pauses=logged)
    rows = []
    for options in ([], ["--think-scale", scale]):
        target = tmp_path / "rows.json"
        assert run(file, "--pressure", ".8", "--concurrency", "4", "--policies", "lru", *options, "--json", target) == 0
        told = "no pauses are logged" in capsys.readouterr().err
        assert told == (not logged and not options)
        rows.append(target.read_text())
    assert rows[0] == rows[1]


def test_writes_a_row_for_each_run(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [tmp_path / "one.json", tmp_path / "two.json"]
    for target in targets:
        options = ("--policies", "lru,pbkv-paper,oracle", "--host-ratio", "0", "--seeds", "2", "--train", trace_file)
        assert run(trace_file, *SHORT, *options, "--json", target) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "oracle" in shown
    assert "recomputed" in shown
    assert "in prefill" in " ".join(shown.split())
    assert targets[0].read_text() == targets[1].read_text()
    rows = json.loads(targets[0].read_text())
    assert len(rows) == 6
    assert set(COLUMNS) <= set(rows[0])


def test_all_traces_can_be_one_workload(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace_file, trace_file, "--mix", *SHORT, "--policies", "lru", "--workflows", "8", "--json", "-") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["workload"] == "tiny+tiny"


def test_by_default_it_compares_lru_pbkv_and_the_oracle_under_a_configuration(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "site.yaml"
    config.write_text("engine:\n  gpu_block: 3\n")
    assert run(trace_file, *SHORT, "--config", config) == 2
    assert "did you mean engine.gpu_blocks?" in capsys.readouterr().err
    config.write_text("cache:\n  guard: false\n")
    assert run(trace_file, *SHORT, "--config", config, "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["lru", "pbkv", "oracle"]
    assert {row["guard_lru_share"] for row in rows if row["policy"] == "pbkv"} == {None}


def test_a_plot_needs_matplotlib(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(trace_file, "--plot", tmp_path / "x.png") == 1
    assert "matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_all_machines_are_listed(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace_file, "--machine", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == machine_names()
    assert "Llama-3.1-70B on 4:" in next(line for line in lines if line.startswith("h100-70b"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--policies", "lru,nonsense"), "nonsense"),
        (("--policies", "lru,lru"), "policies"),
        (("--pressure", "high"), "--pressure"),
        (("--pressure", "1"), "pressure"),
        (("--cost-model", "absent.json"), "absent.json"),
        (("--machine", "h100-15b"), "h100-14b"),
        (("--machine", "h100-14b", "--cost-model", "absent.json"), "--cost-model"),
        (("--arrivals", "absent.jsonl"), "absent.jsonl"),
        (("--train", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_wrong_options_are_named(
    options: tuple[str, ...], named: str, trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trace_file, *options) == 2
    assert named in capsys.readouterr().err


def test_calibration_tells_how_far_it_is_and_writes_a_cost_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model", tmp_path / "cost.json"
    model.mkdir()
    build(model, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16)
    sizes = ["--set", "engine.gpu_blocks=128", "--set", "engine.host_blocks=16", "--set", "engine.device=cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(model), "--out", str(out), "--longest", "512", *sizes])
    assert not ended.value.code
    told = re.findall(r"^\d+ of \d+: .+$", capsys.readouterr().err, re.MULTILINE)
    assert (told[0], told[-1]) == (f"1 of {len(told)}: warming up", f"{len(told)} of {len(told)}: host memory")
    cost = CostModel.load(out)
    assert cost.block_bytes > 0
    assert cost.host_bytes_per_s > 0
    assert 0 <= cost.copy_delay <= 1
