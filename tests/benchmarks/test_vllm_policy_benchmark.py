"""What the benchmark of vLLM's CPU tier makes of the runs that a process in vLLM's environment reports."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.vllm_policy import benchmark


def _run(variant: str, hits: int) -> str:
    common = {"capacity": 100, "infinite": 1000, "vllm": "0.32.0", "prompt_tokens": 2000, "requests": 10, "seconds": 0.02}
    return json.dumps({"variant": variant, "hit_tokens": hits, "lru_tokens": 440, "guard_switches": 0, "refused": 0, **common})


def test_hits_are_compared_with_lru(tmp_path: Path) -> None:
    python = tmp_path / "python"
    lines = ["INFO of vLLM's", _run("lru", 450), _run("arc", 400), _run("pbkv", 600)]
    python.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines).replace("vLLM's", "vLLM"))
    python.chmod(0o755)
    arguments = argparse.Namespace(vllm=str(python), traces=tmp_path, quick=False, replayed=7, replays_of="one,two")
    reports = list(benchmark.run(arguments))
    assert [report.sizes.split(",")[:2] for report in reports] == [["one", " 7 workflows"], ["two", " 7 workflows"]]
    figures = {figure.name: figure for figure in reports[0].figures}
    assert figures["LRU's hits, of those of an infinite cache"].value == 0.45
    assert figures["tokens hit: arc, over LRU"].value == pytest.approx(400 / 450)
    assert figures["tokens hit: pbkv, over LRU"].value == pytest.approx(600 / 450)
    assert figures["tokens hit: pbkv, over LRU"].met is True
    assert figures["CPU time of a request in the manager: pbkv"].value == pytest.approx(2.0)


def test_it_needs_an_environment_with_vllm(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--vllm PYTHON"):
        list(benchmark.run(argparse.Namespace(vllm=None, traces=tmp_path, quick=True, replayed=1, replays_of="one")))
