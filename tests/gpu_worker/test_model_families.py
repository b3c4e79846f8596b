"""The engine's greedy output equals that of `transformers`, or the model is refused by name: a handful of families and traps.

`python -m tests.gpu_worker.model_families` (`make test-models`) does all families.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_worker.model_families import WINDOW, build, judge

SLIDING = ["sliding_attention", "full_attention"] * 2
SWITCH = 64  # position at which the rotary factors of the longrope models change
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": SWITCH,
}
LONG: dict[str, Any] = {
    "rope_parameters": LONGROPE,
    "original_max_position_embeddings": SWITCH,
    "sliding_window": None,
}


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
        ("phi3", LONG, f"model.max_context_tokens: {SWITCH} keeps"),
    ],
)
def test_a_model_that_would_come_out_differently_is_refused(
    family: str, fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    build(family, tmp_path, **fields)
    verdict = judge(family, tmp_path)
    assert verdict.outcome == "refused"
    assert re.search(why, verdict.reason)


def test_longrope_is_served_while_all_positions_are_on_one_side_of_the_switch(tmp_path: Path) -> None:
    build("phi3", tmp_path, **LONG)
    verdict = judge("phi3", tmp_path, max_context_tokens=SWITCH)
    assert (verdict.outcome, verdict.reason) == ("identical", "")
    assert judge("phi3", tmp_path, max_context_tokens=SWITCH + 1).outcome == "refused"
