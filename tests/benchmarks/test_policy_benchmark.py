"""The benchmark of policies pools rows, and an interrupted run goes on where it stopped."""

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.policies import benchmark as policies
from benchmarks.policies.job import add_options, job_of
from benchmarks.policies.pooled import above_oracle, cells, guard_cost, left_out, pool
from benchmarks.policies.row_file import RowFile, Rows, Scene, key_of
from benchmarks.policies.tables import policy_report
from benchmarks.report import Figure
from pbkv_cluster.simulator.evaluation.experiment import Row
from pbkv_cluster.simulator.workload.generator import Sizes, generate

SCENE = Scene("show", 150, 32, 8.0, 2.0)
TOKENS = 1000  # of the prompts of a row


def row(
    workload: str,
    policy: str,
    hit: float,
    seed: int = 0,
    measured: float = 0.45,
    guard: float | None = None,
    cpu: float | None = None,
) -> Row:
    """A run that hits a share of the prompt tokens, all of them on the GPU. The less it hits, the longer it takes."""
    return Row(
        workload=workload,
        pressure=0.45,
        policy=policy,
        seed=seed,
        capacity_blocks=100,
        host_blocks=200,
        recomputed_tokens=round((0.9 - hit) * TOKENS),
        available_tokens=round(0.9 * TOKENS),
        ttft_mean_s=1 - hit,
        ttft_p90_s=1 - hit,
        step_mean_s=1 - hit,
        step_p90_s=1 - hit,
        latency_mean_s=1 - hit,
        latency_p90_s=1 - hit,
        hit_any=hit,
        hit_gpu=hit,
        hit_infinite=0.9,
        preemptions=0,
        worker_changes=0,
        pressure_measured=measured,
        time_shares={},
        guard_lru_share=guard,
        bound_tokens=round((0.9 - hit) * TOKENS) if policy == "oracle" else None,
        cpu_s=cpu,
    )


def rows_of(*entries: Row, disturbed: str = "") -> Rows:
    return {key_of(entry, disturbed): entry for entry in entries}


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    add_options(parser)
    return parser.parse_args(given)


def test_gaps_are_pooled_and_ratios_are_means() -> None:
    rows = rows_of(
        *(row("a", "lru", 0.2), row("a", "oracle", 0.6), row("a", "pbkv", 0.4, guard=0.5)),
        *(row("b", "lru", 0.4), row("b", "oracle", 0.5), row("b", "pbkv", 0.36, guard=0.1)),
        *(row("b", "lru", 0.4, 1), row("b", "oracle", 0.5, 1), row("b", "pbkv", 0.44, 1, guard=0.0)),
        *(row("c", "lru", 0.8, measured=0.7), row("c", "oracle", 0.9), row("c", "pbkv", 0.1)),  # not at the requested pressure
        *(row("d", "lru", 0.4), row("d", "pbkv", 0.1)),  # the oracle has not run yet
    )
    found = pool(cells(rows, "pbkv", 0.45))
    assert found is not None
    assert found.cells == 3
    assert found.gap_closed == pytest.approx((0.2 - 0.04 + 0.04) / (0.4 + 0.1 + 0.1))
    assert found.gpu_gap_closed == pytest.approx(found.gap_closed)
    assert found.recomputed == pytest.approx((0.5 + 0.54 + 0.46) / (0.7 + 0.5 + 0.5)), "the sums are divided"
    assert found.gpu == pytest.approx((2.0 + 0.9 + 1.1) / 3), "a mean of ratios"
    assert found.worst_workload == "b"
    assert found.worst_any == pytest.approx(1.0)
    assert found.latency == found.ttft == pytest.approx((0.6 + 0.64 + 0.56) / (0.8 + 0.6 + 0.6))
    assert found.latency_best == pytest.approx(0.6 / 0.8)
    assert found.guard_lru_share == pytest.approx(0.2)
    assert [each.workload for each in left_out(rows, [0.45])] == ["c"]
    assert pool(cells(rows, "pbkv", 0.65)) is None


def test_disturbed_rows_are_compared_with_the_same_lru_and_oracle() -> None:
    rows = rows_of(row("a", "lru", 0.2), row("a", "oracle", 0.6), row("a", "pbkv", 0.40))
    rows |= rows_of(row("a", "lru", 0.2), row("a", "pbkv", 0.44), disturbed="unguarded")
    assert len(rows) == 4
    assert [cell.row.hit_gpu for cell in cells(rows, "pbkv", 0.45, "unguarded")] == [0.44]
    assert guard_cost(rows, "pbkv", 0.45, "", "unguarded") == pytest.approx(0.2)
    assert guard_cost(rows, "lfu", 0.45, "", "unguarded") is None


def test_runs_that_beat_the_oracle_are_reported(tmp_path: Path) -> None:
    rows = rows_of(row("a", "lru", 0.2), row("a", "oracle", 0.4), row("a", "pbkv", 0.404), row("a", "lfu", 0.41))
    assert [key.policy for key, _ in above_oracle(rows)] == ["lfu"], "beyond what is noise"
    (tmp_path / "a.jsonl.gz").touch()
    job = job_of(arguments("--workloads", "a", "--traces", str(tmp_path)))
    report = policy_report(job.scene, ("lru", "oracle", "pbkv", "lfu"), (0.45,), job.disturbances, rows, [])
    figures = {figure.name: figure for figure in report.figures}
    assert figures["runs that recompute less than the oracle"].met is False
    gap = figures["pbkv at 45 %: gap in recomputed tokens closed"]
    assert gap.at_least == 0.65
    assert gap.value == pytest.approx(1.02)
    recomputed = figures["pbkv at 45 %: recomputed tokens over LRU's"]
    assert recomputed.at_most == 0.55
    assert recomputed.value == pytest.approx(0.496 / 0.7)
    assert figures["pbkv at 45 %: gap in GPU hits closed"].at_least is None, "a goal of the GPU alone"


def test_goals_depend_on_the_memory_and_the_disturbance(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").touch()
    usual = ("--workloads", "a", "--traces", str(tmp_path))
    alone = job_of(arguments(*usual, "--host-ratio", "0"))
    rows = rows_of(row("a", "lru", 0.2), row("a", "oracle", 0.6), row("a", "pbkv", 0.4))
    report = policy_report(alone.scene, ("lru", "oracle", "pbkv"), (0.45,), alone.disturbances, rows, [])
    goals = {figure.name: figure.goal for figure in report.figures}
    assert goals["pbkv at 45 %: gap in GPU hits closed"] == "≥ 0.75"
    assert goals["pbkv at 45 %: gap in recomputed tokens closed"] == ""
    assert "GPU tier only" in report.sizes
    noisy = job_of(arguments(*usual, "--noise", "1"))
    rows |= rows_of(row("a", "pbkv", 0.19), disturbed=str(noisy.disturbances[0]))
    report = policy_report(noisy.scene, ("lru", "oracle", "pbkv"), (0.45,), noisy.disturbances, rows, [])
    (worst,) = (figure for figure in report.figures if "worst workload" in figure.name)
    assert (worst.at_least, worst.met) == (0.99, False)


def test_the_longest_run_tells_the_processor_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").touch()
    job = job_of(arguments("--workloads", "a", "--traces", str(tmp_path)))
    rows = rows_of(*(row(name, policy, hit) for name in "ab" for policy, hit in (("lru", 0.2), ("oracle", 0.6))))
    names = ("lru", "oracle", "pbkv")

    def processor_times(*found: Row) -> list[Figure]:
        report = policy_report(job.scene, names, (0.45,), job.disturbances, rows | rows_of(*found), [])
        return [figure for figure in report.figures if "processor time" in figure.name]

    old, short, long = row("a", "pbkv", 0.4), row("a", "pbkv", 0.4, cpu=9.0), row("b", "pbkv", 0.4, cpu=11.0)
    assert processor_times(old) == [], "a row of a time when it was not measured"
    assert [(figure.value, figure.met) for figure in processor_times(short)] == [(9.0, True)]
    (figure,) = processor_times(short, long)
    assert figure == Figure("pbkv at 45 %: processor time of the longest run, b", 11.0, "s", at_most=10.0)
    file = RowFile(tmp_path / "rows.jsonl")
    file.append(SCENE, "", long)
    (kept,) = file.rows(SCENE).values()
    assert kept.cpu_s == 11.0


def test_a_file_of_rows_keeps_the_latest_row_and_drops_an_incomplete_line(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.mend()
    assert file.rows(SCENE) == {}
    first, again, other = row("a", "pbkv", 0.4), row("a", "pbkv", 0.5), row("a", "lru", 0.2)
    file.append(SCENE, "", first)
    file.append(SCENE, "adversary", other)
    file.append(replace(SCENE, part="tune"), "", row("a", "lru", 0.1))
    file.append(SCENE, "", again)
    with (tmp_path / "rows.jsonl").open("ab") as raw:
        raw.write(b'{"scene": {"part"')
    file.mend()
    assert file.rows(SCENE) == rows_of(again, other), "LRU is never disturbed"
    with (tmp_path / "rows.jsonl").open("ab") as raw:
        raw.write(b'{"scene": {}}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 5"):
        file.rows(SCENE)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--policies", "nonsense"), "--policies"),
        (("--workloads", "nonsense"), "--workloads"),
        (("--pressures", "1"), "--pressures"),
        (("--pressures", "high"), "--pressures"),
        (("--noise", "2"), "--noise"),
        (("--seeds", "0"), "--seeds"),
        (("--host-ratio", "-1"), "--host-ratio"),
        (("--machine", "nonsense"), "--machine"),
        (("--again",), "--again"),
    ],
)
def test_wrong_options_are_named(given: Sequence[str], named: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.jsonl.gz").touch()
    usual = () if "--workloads" in given else ("--workloads", "tiny")
    with pytest.raises(ValueError, match=named):
        job_of(arguments(*given, *usual, "--traces", str(tmp_path)))


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A folder with one generated trace."""
    lines = []
    for workflow in generate(40, 0, Sizes(32, 96, 48, 24, 64), max_steps=6):
        for number, step in enumerate(workflow.steps):
            line = {
                "workflow_id": workflow.id,
                "workload": "tiny",
                "step": number,
                "agent": step.agent,
                "prompt_segments": [asdict(segment) for segment in step.prompt],
                "prompt_tokens": step.prompt_tokens,
                "output_tokens": step.output_tokens,
                "output_id": step.output_id,
            }
            lines.append(json.dumps(line))
    with gzip.open(tmp_path / "tiny.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return tmp_path


def test_goes_on_where_it_stopped(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = traces / "rows.jsonl"
    sizes = ("--quick", "--online", "--workloads", "tiny", "--pressures", ".8", "--host-ratio", ".1")
    usual = (*sizes, "--traces", str(traces), "--rows", str(kept))
    report = policies.run(arguments(*usual, "--policies", "retired-lru"))
    assert {figure.name for figure in report.details} >= {"retired-lru at 80 %: gap closed", "oracle at 80 %: gap closed"}
    lines = kept.read_text().splitlines()
    assert [json.loads(line)["row"]["policy"] for line in lines] == ["lru", "oracle", "retired-lru"]
    kept.write_text("\n".join([*lines[:1], lines[1][:40]]))  # interrupted while it wrote the second row
    policies.run(arguments(*usual, "--policies", "retired-lru"))
    first, again = ([Row(**json.loads(line)["row"]) for line in text] for text in (lines, kept.read_text().splitlines()))
    assert again == first, "with the capacity that LRU's row names, all is as it was"
    assert all(row.cpu_s for row in again)
    policies.run(arguments(*usual, "--policies", "retired-lru,continuum"))
    assert [json.loads(line)["row"]["policy"] for line in kept.read_text().splitlines()[3:]] == ["continuum"]
    policies.run(arguments(*usual, "--policies", "continuum", "--again"))
    assert len(kept.read_text().splitlines()) == 5
    assert "continuum" in capsys.readouterr().out
