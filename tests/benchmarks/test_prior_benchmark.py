"""The benchmark of the prior compares ways of teaching with LRU, and workloads that run together with the same ones alone."""

import argparse
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.policies import job
from benchmarks.prior import benchmark as prior
from benchmarks.prior.together import Tally
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.workload.applications import CODING, RESEARCH, SUPPORT
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from tests.simulator.simulated import lines_of

APPLICATIONS = (CODING, RESEARCH, SUPPORT)
MIXED = ("chatdev_cli", "metagpt_code")


def made(number: int, workflows: int = 16) -> Trace:
    """Workflows with short prompts, of an application by its number."""
    application = APPLICATIONS[number % len(APPLICATIONS)]
    return Trace(application.name, tuple(generate(workflows, number, Sizes(32, 96, 48, 24, 64), (application,), max_steps=5)))


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    job.add_options(parser)
    prior.add_options(parser)
    return parser.parse_args(["--seeds", "1", "--run-workflows", "16", *given])


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small generated trace in place of each recorded one."""
    folder = tmp_path_factory.mktemp("traces")
    for number, name in enumerate(job.WORKLOADS):
        workflows = (replace(workflow, workload=name) for workflow in made(number).workflows)
        with gzip.open(folder / f"{name}.jsonl.gz", "wb") as file:
            file.writelines(line + b"\n" for line in lines_of(workflows))
    return folder


def test_compares_ways_of_teaching_and_workloads_together_and_alone(traces: Path) -> None:
    given = ("--traces", str(traces), "--workloads", ",".join(MIXED), "--taught", "nothing,prior", "--host-ratios", "0.5")
    report = prior.run(arguments(*given))
    details = {figure.name: figure.value for figure in report.details}
    figures = {figure.name: figure for figure in report.figures}
    assert [name for name in figures if "taught" in name] == [
        f"{name}, host ratio 0.5, taught {way}: recomputed tokens over LRU's"
        for name in (*MIXED, "all")
        for way in ("nothing", "prior")
    ]
    for name in MIXED:
        for what in ("a mix", "a drift"):
            own = [figure for each, figure in figures.items() if each.startswith(f"{name} in {what}, host ratio 0.5: ")]
            together, loss = own
            assert together.goal == ""
            assert loss.goal in ("≤ 1.02", ""), "no goal where it cannot be compared"
            alone = details[f"{name} alone, as in {what}, host ratio 0.5: hits in any tier over LRU's"]
            assert loss.value == pytest.approx(alone / together.value)


def test_a_workload_without_company_is_as_it_is_alone() -> None:
    tally = Tally()
    tally.add([made(0)], (0.5,), seed=0, workflows=48, drift=False)  # more than run at a time
    _, alone_over_together = tally.figures("a mix")
    assert alone_over_together.at_most == 1.02
    assert alone_over_together.value == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("option", ["--taught", "--prior-parts"])
def test_wrong_parts_are_named(option: str, traces: Path) -> None:
    with pytest.raises(SystemExit, match=f"{option}: there is no nonsense"):
        prior.run(arguments("--traces", str(traces), option, "nonsense"))
