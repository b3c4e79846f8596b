"""Tokens that vLLM's CPU tier hits under our policy, and under its own LRU and ARC, on recorded workflows."""

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, Report

WORKLOADS = ("chatdev_cli", "whowhen_magentic", "autocoderover")
_CONCURRENCY, _THINK_SCALE, _SHARE = 32, 8.0, 0.45
_VARIANTS = ("lru", "arc", "pbkv", "pbkv, ends not told", "pbkv, nothing told")
_ROOT = Path(__file__).parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vllm-policy")
    group.add_argument(
        "--replayed", type=int, default=150, metavar="N", help="workflows of each workload (default: %(default)s)"
    )
    group.add_argument("--replays-of", default=",".join(WORKLOADS), metavar="NAMES", help="workloads (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Report]:
    if not arguments.vllm:
        raise SystemExit("vllm-policy: needs --vllm PYTHON, the interpreter of an environment that has vLLM")
    workflows = 30 if arguments.quick else arguments.replayed
    workloads = arguments.replays_of.split(",")
    for workload in workloads[:1] if arguments.quick else workloads:
        yield _report(workload, list(_runs(arguments.vllm, arguments.traces / f"{workload}.jsonl.gz", workflows)), workflows)


def _runs(python: str, trace: Path, workflows: int) -> Iterator[dict[str, Any]]:
    options = {
        "trace": str(trace),
        "workflows": workflows,
        "concurrency": _CONCURRENCY,
        "think_scale": _THINK_SCALE,
        "seed": 0,
        "share": _SHARE,
        "variants": _VARIANTS,
    }
    command = [python, "-m", "benchmarks.vllm_policy.child", json.dumps(options)]
    ended = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in ended.stdout.splitlines():
        if line.startswith("{"):  # vLLM prints lines of its own
            yield json.loads(line)


def _report(workload: str, runs: list[dict[str, Any]], workflows: int) -> Report:
    lru = next(each for each in runs if each["variant"] == "lru")
    figures = [Figure("LRU's hits, of those of an infinite cache", lru["hit_tokens"] / lru["infinite"], "")]
    details = [
        Figure("tokens of all prompts", lru["prompt_tokens"], ""),
        Figure("hit by an infinite cache", lru["infinite"], ""),
    ]
    for each in runs:
        name = each["variant"]
        if each is not lru:
            goal = 1.25 if name == "pbkv" else None
            figures.append(Figure(f"tokens hit: {name}, over LRU", each["hit_tokens"] / lru["hit_tokens"], "x", at_least=goal))
        figures.append(Figure(f"CPU time of a request in the manager: {name}", each["seconds"] / each["requests"] * 1e3, "ms"))
        counted = ("hit_tokens", "lru_tokens", "guard_switches", "refused")
        details.extend(Figure(f"{name}: {field}", each[field], "") for field in counted)
    sizes = (
        f"{workload}, {workflows} workflows, {_CONCURRENCY} at a time, {lru['requests']} requests, {lru['capacity']} chunks of "
        f"16 tokens, CPUOffloadingManager of vLLM {lru['vllm']}"
    )
    return Report("vllm-policy", sizes, tuple(figures), tuple(details))
