"""A group chat of five agents: what a cold cluster recomputes, one with the prior, and ones that were taught.

The chat is generated: the order of its agents differs from workflow to workflow, each hears what the others have said, and some
wait for tools. Two workers have a small random model, in real processes or, with `--chat-virtual`, in virtual time. For each
host ratio and seed, a new cluster runs the same workflows under each contender:

- `lru`: LRU on the GPU, `retired-lru` in host memory.
- `cold`: `pbkv` on both tiers, no prior, nothing learnt.
- `prior`: the same with the prior that ships, nothing learnt.
- `others`, `own`: the same with the prior, started from what a cluster has learnt from other applications, or from this chat
  with another seed.

Runs of one seed follow each other, so that they see about the same load. With `--chat-model 24m`, computing prompts takes most
of the time, and the seconds of first token and workflow count as well. With `--chat-rows FILE` each run is a line of that file
as soon as it has ended: what is there is not run again, and an interrupt ends with a report on the seeds that are complete.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.report import Figure, Report
from benchmarks.serving.group_chat_runs import GPU_BLOCKS, MODELS, OPTIONS, Outcome, RealRuns, VirtualRuns
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.simulator.workload.applications import APPLICATIONS, END, Agent, Application, Edge, Tool
from pbkv_cluster.simulator.workload.generator import Sizes, generate

__all__ = ["add_options", "run"]

CONTENDERS = ("lru", "cold", "prior", "others", "own")
_SIZES = Sizes(preamble=48, system=160, task=96, output=16, tool_result=96)
_MAX_STEPS = 24
_TEACHING_SEED = 1000
_SMALLEST = MODELS[0]
_AT_MOST = {"prior": 0.85, "own": 0.7}  # recomputed over LRU's, all seeds together
_ANY_SEED = 1.03  # likewise, at most, on each
_WORKFLOW, _FIRST_TOKEN = 1.05, 1.2  # LRU's seconds over those with the prior, at least, with the larger model
_SEARCH, _RUN, _ASK = Tool("search", 3.0, 1.2), Tool("run_code", 6.0), Tool("ask_user", 20.0, 0.5)

GROUP_CHAT = Application(
    "group-chat",
    "moderator",
    {
        "moderator": Agent(
            (Edge("engineer", 0.4), Edge("researcher", 0.35), Edge("critic", 0.15, retry=True), Edge("writer", 0.1)), output=0.6
        ),
        "engineer": Agent(
            (Edge("engineer", 0.3, retry=True, tool=_RUN), Edge("critic", 0.4, tool=_RUN), Edge("moderator", 0.3)), output=1.5
        ),
        "researcher": Agent(
            (Edge("researcher", 0.25, tool=_SEARCH), Edge("engineer", 0.35), Edge("moderator", 0.4, tool=_SEARCH))
        ),
        "critic": Agent((Edge("engineer", 0.4, retry=True), Edge("moderator", 0.3), Edge("writer", 0.3)), output=0.8),
        "writer": Agent((Edge("moderator", 0.3, retry=True, tool=_ASK), Edge("critic", 0.2), Edge(END, 0.5)), output=1.2),
    },
    group=True,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark; it shares --seeds with `policies`."""
    group = parser.add_argument_group("groupchat", "options of that benchmark; it takes --seeds too")
    group.add_argument("--chat-ratios", default=".3,1", metavar="R,S", help="blocks in host memory for each on the GPUs")
    group.add_argument("--chat-workflows", type=int, default=40, metavar="N", help="workflows of a run; default 40")
    group.add_argument("--chat-model", choices=MODELS, default=_SMALLEST, help="parameters of the random model; default 5m")
    group.add_argument("--chat-virtual", action="store_true", help="in virtual time, instead of real processes")
    group.add_argument(
        "--chat-rows", type=Path, metavar="FILE", help="keep each run in this file; what is there is not run again"
    )
    group.add_argument("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="lru is always run; default all")


def run(arguments: argparse.Namespace) -> Report:
    """Teaches, runs all contenders and reports."""
    chosen = [name for name in CONTENDERS if name == "lru" or name in arguments.contenders.split(",")]
    if unknown := {*arguments.contenders.split(",")} - {*CONTENDERS}:
        sys.exit(f"benchmarks: --contenders: there is no {', '.join(sorted(unknown))}, only {', '.join(CONTENDERS)}")
    quick, model, virtual = arguments.quick, arguments.chat_model, arguments.chat_virtual
    workflows, taught_by = (24, 8) if quick else (arguments.chat_workflows, 80)
    seeds = range(1 if quick else arguments.seeds)
    scene = _Scene("virtual time" if virtual else "real processes", model, workflows, taught_by)
    figures, details = list[Figure](), list[Figure]()
    try:
        ratios = [float(ratio) for ratio in arguments.chat_ratios.split(",")][: 1 if quick else None]
        with TemporaryDirectory() as folder:
            runs = VirtualRuns(model) if virtual else RealRuns(model, Path(folder))
            rows = _Rows(scene, arguments.chat_rows)
            try:
                _run_all(runs, rows, scene, [_Key(name, ratio, seed) for ratio in ratios for seed in seeds for name in chosen])
            except KeyboardInterrupt:
                print("groupchat: interrupted", file=sys.stderr)
        for ratio in ratios:
            outcomes = rows.complete(chosen, ratio, seeds)
            figures += _figures(f"host ratio {ratio:g}", outcomes, judge_seconds=model != _SMALLEST)
            details += _details(f"host ratio {ratio:g}", outcomes)
    except (PbkvError, RuntimeError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    sizes = f"{workflows} workflows, {OPTIONS.concurrency} at a time, 2 workers of {GPU_BLOCKS} blocks"
    how = f"random model of {model}, taught by {taught_by} workflows; {scene.how}"
    return Report("groupchat", f"{sizes}; {how}", tuple(figures), tuple(details))


class _Scene(NamedTuple):
    """What rows must have in common to be compared."""

    how: str
    model: str
    workflows: int
    taught_by: int


class _Key(NamedTuple):
    """One run of a scene."""

    contender: str
    ratio: float
    seed: int


class _Rows:
    """The runs that have ended, kept in a file if there is one."""

    def __init__(self, scene: _Scene, path: Path | None) -> None:
        """Raises:
        ValueError: a line of the file is no row.
        """
        self._scene = scene
        self._path = path
        self._found: dict[_Key, Outcome] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            row = json.loads(line)
            if _Scene(**row["scene"]) == scene:
                self._found[_Key(**row["run"])] = Outcome(**row["outcome"])

    def __contains__(self, key: _Key) -> bool:
        return key in self._found

    def add(self, key: _Key, outcome: Outcome) -> None:
        self._found[key] = outcome
        print(f"groupchat: {key}: {outcome}", file=sys.stderr, flush=True)
        if self._path is not None:
            row = {
                "scene": self._scene._asdict(),
                "run": key._asdict(),
                "outcome": outcome._asdict(),
                "load": os.getloadavg()[0],
            }
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def complete(self, chosen: Sequence[str], ratio: float, seeds: Iterable[int]) -> dict[str, dict[int, Outcome]]:
        """By contender, the outcomes of the seeds that all of them have run."""
        whole = [seed for seed in seeds if all(_Key(name, ratio, seed) in self for name in chosen)]
        return {name: {seed: self._found[_Key(name, ratio, seed)] for seed in whole} for name in chosen}


def _run_all(runs: RealRuns | VirtualRuns, rows: _Rows, scene: _Scene, keys: Sequence[_Key]) -> None:
    missing = [key for key in keys if key not in rows]
    for name, applications in (("others", APPLICATIONS), ("own", (GROUP_CHAT,))):
        if name in {key.contender for key in missing}:
            runs.teach(name, list(generate(scene.taught_by, _TEACHING_SEED, _SIZES, applications, _MAX_STEPS)))
    for key in missing:
        traces = list(generate(scene.workflows, key.seed, _SIZES, (GROUP_CHAT,), _MAX_STEPS))
        outcome = runs.run(key.contender, key.ratio, traces)
        if key.contender == "lru" and not outcome.recomputed:
            raise ValueError(f"{key}: LRU recomputes nothing, so there is nothing to compare")
        rows.add(key, outcome)


def _figures(where: str, outcomes: Mapping[str, Mapping[int, Outcome]], judge_seconds: bool) -> Iterator[Figure]:
    """Each contender over LRU: all seeds together, and the worst."""
    if not outcomes["lru"]:
        return
    sums = {name: Outcome(*map(sum, zip(*runs.values(), strict=True))) for name, runs in outcomes.items()}
    lru = sums["lru"]
    yield Figure(f"{where}: seeds", len(outcomes["lru"]), "")
    yield Figure(f"{where}: LRU recomputes", lru.recomputed, "tokens")
    for name, total in sums.items():
        if name == "lru":
            continue
        worst = max(run.recomputed / outcomes["lru"][seed].recomputed for seed, run in outcomes[name].items())
        pooled = total.recomputed / lru.recomputed
        yield Figure(f"{where}, {name}: recomputed over LRU's", pooled, "x", at_most=_AT_MOST.get(name))
        yield Figure(f"{where}, {name}: recomputed over LRU's, worst seed", worst, "x", at_most=_ANY_SEED)
        goals = (_WORKFLOW, _FIRST_TOKEN) if judge_seconds and name == "prior" else (None, None)
        yield Figure(f"{where}, {name}: LRU's workflow over its", lru.workflow_s / total.workflow_s, "x", at_least=goals[0])
        yield Figure(f"{where}, {name}: LRU's first token over its", lru.ttft_s / total.ttft_s, "x", at_least=goals[1])
    if "cold" in sums and "others" in sums:
        taught = sums["others"].recomputed / sums["cold"].recomputed
        yield Figure(f"{where}: recomputed when taught by others, over cold", taught, "x", at_most=1.0)


def _details(where: str, outcomes: Mapping[str, Mapping[int, Outcome]]) -> Iterator[Figure]:
    for name, runs in outcomes.items():
        for seed, outcome in runs.items():
            what = f"{name}, {where}, seed {seed}"
            yield Figure(f"{what}: recomputed", outcome.recomputed, "tokens")
            yield Figure(f"{what}: first token, mean", outcome.ttft_s, "s")
            yield Figure(f"{what}: workflow, mean", outcome.workflow_s, "s")
