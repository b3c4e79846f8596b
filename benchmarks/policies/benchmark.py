"""Runs reuse policies on recorded workloads, at equal pressure, in virtual time. A whole run takes hours.

Each trace is split by task: predictor and access model are trained on one part, and policies run on another. A unit of work
is a workload with a seed. It has a process of its own and appends each row to a file as soon as it is made.
"""

import argparse
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.policies.job import ROWS, WHOLE, Job, add_options, job_of
from benchmarks.policies.row_file import Key, RowFile, Scene
from benchmarks.policies.tables import policy_report
from benchmarks.report import Report
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.machines import machine
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.evaluation.comparison import Comparison
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, train_state
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

__all__ = ["add_options", "run"]

SHARES = {"train": 0.6, "tune": 0.2, "show": 0.2}
SALT = "policies"  # of the split


def run(arguments: argparse.Namespace) -> Report:
    """Makes the missing rows, and reports on all of them."""
    try:
        job = job_of(arguments)
        with _rows_path(arguments.rows, arguments.quick) as path:
            file = RowFile(path)
            file.mend()
            failed = _run_all(job, file, arguments.processes)
            rows = {key: row for key, row in file.rows(job.scene).items() if job.includes(key)}
    except (PbkvError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted; rows that were kept are not made again")
    return policy_report(job.scene, job.policies, job.pressures, job.disturbances, rows, failed)


@contextmanager
def _rows_path(given: Path | None, quick: bool) -> Iterator[Path]:
    if given is None and quick:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / ROWS.name
    else:
        yield given or ROWS


def _run_all(job: Job, file: RowFile, processes: int) -> list[str]:
    """Runs units, `processes` of them at a time. Returns the names of those that failed."""
    rows = file.rows(job.scene)
    units = [(workload, seed) for workload in job.workloads for seed in job.seeds]
    waiting = [unit for unit in units if job.missing(*unit, rows)]
    waiting.sort(key=lambda unit: job.trace_path(unit[0]).stat().st_size)  # the largest, at the end, starts first
    spawn = multiprocessing.get_context("spawn")
    running = dict[int, BaseProcess]()
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                unit = waiting.pop()
                process: BaseProcess = spawn.Process(
                    target=run_unit, args=(job, *unit, file), name=f"{unit[0]} with seed {unit[1]}"
                )
                process.start()
                running[process.sentinel] = process
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                ended = running.pop(sentinel)
                ended.join()
                if ended.exitcode:
                    failed.append(ended.name)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    return failed


def run_unit(job: Job, workload: str, seed: int, file: RowFile) -> None:
    """Makes the missing rows of one workload with one seed, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles interrupts
    rows = file.rows(job.scene)
    trace, training = _parts(load_trace(job.trace_path(workload)), job.scene)
    cost = machine(job.scene.machine).cost() if job.scene.machine else CostModel()
    if job.scene.host_gb_per_s:
        cost = replace(cost, host_bytes_per_s=1e9 * job.scene.host_gb_per_s)
    setup = Setup(0, seed=seed, workers=job.scene.workers, predictor=job.predictor, cost=cost)
    mix = Mix(job.scene.workflows, job.scene.concurrency, job.scene.think_scale)
    tokens = TokenSource(make_workload([trace], mix, seed))
    known = [row for key, row in rows.items() if (key.workload, key.seed) == (workload, seed) and key.policy not in job.again]
    sized = [row for row in file.sized(job.scene) if (row.workload, row.seed) == (workload, seed)]
    comparison = Comparison(tokens, setup, job.scene.host_ratio, known=known, sized=sized)
    trained: Setup | None = None
    started = set[Key]()
    while missing := [each for each in job.missing(workload, seed, rows) if each[0] not in started]:
        key, disturbance = missing[0]  # recomputed each time: LRU's row decides whether the others are of use
        started.add(key)
        if key.policy not in (BASELINE, BOUND) and trained is None:
            trained = train_state(setup, [training]) if training is not None else setup
        row = comparison.row(key.policy, key.pressure, None if trained is None else disturbance.on(trained))
        rows[key] = row
        file.append(job.scene, key.disturbed, row)
        over_lru = (row.over_lru or {}).get("recomputed_tokens")
        ratio = "" if over_lru is None else f", {over_lru:.3f} x lru"
        what = f"{key.policy} ({key.disturbed})" if key.disturbed else key.policy
        print(
            f"{workload}, seed {seed}, {100 * key.pressure:g} %: {what} recomputes {row.recomputed_tokens} tokens{ratio}",
            file=sys.stderr,
            flush=True,
        )


def _parts(trace: Trace, scene: Scene) -> tuple[Trace, Trace | None]:
    """The trace to run, and the one to train on before."""
    if scene.part == WHOLE:
        return trace, None
    parts = split(trace, SHARES, SALT)
    return parts[scene.part], parts["train"]
