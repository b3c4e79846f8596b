"""The engine's greedy output equals that of `transformers`, or the model is refused by name: a handful of families and traps.

`python -m tests.gpu_worker.model_families` (`make test-models`) does all families.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_worker.model_families import SWITCH, WINDOW, build, judge

SLIDING = ["sliding_attention", "full_attention"] * 2


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {}),
        ("gemma3_text", {"layer_types": SLIDING}),
        ("gemma3", {"layer_types": SLIDING}),
        ("qwen2_moe", {}),
        ("qwen2_moe", {"layer_types": SLIDING[::-1]}),
        ("phi3", {"sliding_window": WINDOW}),
        ("gpt_neox", {}),
        ("phi3 with longrope", {}),
        ("phimoe with longrope", {}),
        ("llama with longrope", {}),
        ("llama with dynamic NTK", {}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_output_is_identical(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    build(family, tmp_path, **fields)
    verdict = judge(family, tmp_path)
    assert (verdict.outcome, verdict.reason) == ("identical", "")


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        ("falcon_h1", {}, "mixes tokens outside attention"),
        ("diffllama", {}, "layer 0 calls attention 2 times"),
        ("doge", {}, "computes an attention mask of its own"),
        ("gemma2", {}, "uses 'softcap'"),
        ("moshi", {}, "with a cache than without"),
        ("deepseek_v32", {}, "an index chooses"),
        ("lfm2", {}, "mixes tokens outside attention|equal KV in each"),
    ],
)
def test_a_model_that_would_come_out_differently_is_refused(
    family: str, fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    build(family, tmp_path, **fields)
    verdict = judge(family, tmp_path)
    assert verdict.outcome == "refused"
    assert re.search(why, verdict.reason)


@pytest.mark.parametrize("context", [SWITCH, SWITCH + 1, SWITCH + 20])
def test_longrope_is_served_with_any_context(context: int, tmp_path: Path) -> None:
    build("phi3 with longrope", tmp_path)
    verdict = judge("phi3 with longrope", tmp_path, max_context_tokens=context)
    assert (verdict.outcome, verdict.reason) == ("identical", "")
