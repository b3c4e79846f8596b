"""The benchmark of the demo compares LRU and our policy by medians over its seeds."""

from typing import Any

import pytest

from benchmarks.serving.demo import demo_of, report


def reports(recomputed: int, first_token: float, workflow: float) -> dict[str, Any]:
    """What a demo writes, with 100 recomputed tokens and seconds of 1 and 10 under LRU."""

    def written(tokens: int, first: float, whole: float) -> dict[str, Any]:
        return {"recomputed_tokens": tokens, "ttft": {"mean_s": first}, "workflow_latency": {"mean_s": whole}}

    return {"lru": written(100, 1.0, 10.0), "pbkv": written(recomputed, first_token, workflow)}


def test_medians_have_the_goals() -> None:
    runs = (reports(40, 0.5, 5.0), reports(90, 1.25, 12.5), reports(70, 0.8, 8.0))
    shown = report([demo_of(seed, found, wall_s=200.0) for seed, found in enumerate(runs)], "three demos")
    assert [figure.value for figure in shown.figures] == pytest.approx([0.7, 1.25, 1.25, 200.0])
    assert [figure.met for figure in shown.figures] == [None, False, True, False]
    details = {figure.name: figure.value for figure in shown.details}
    assert details["seed 1: recomputed tokens over LRU's"] == pytest.approx(0.9)
    assert len(details) == 12
