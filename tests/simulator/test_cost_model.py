"""The cost model: its file, and how it is fitted."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.calibrate import calibrate
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.runner import SimulatedRunner


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_a_fit_finds_the_constants_of_a_device_that_follows_the_model(delay: float) -> None:
    truth = CostModel(3e-5, 1e-9, 4e-3, 2e-5, 5e-8, 7e9, 1 << 20, delay)
    clock = ManualClock()
    fitted = calibrate(SimulatedRunner(4000, 100, truth, clock, set()), 1 << 20, clock, (64, 700, 2000), (1, 3, 8))
    # Each decode reads one token more than the one before, and those without a load come first.
    assert fitted.copy_delay == pytest.approx(delay, abs=1e-4)
    assert asdict(replace(fitted, copy_delay=delay)) == pytest.approx(asdict(truth), rel=1e-6)


def test_parts_of_a_prefill_take_as_long_as_the_whole() -> None:
    cost = CostModel()
    parts = cost.prefill_seconds(0, 512) + cost.prefill_seconds(512, 512) + cost.prefill_seconds(1024, 100)
    assert parts == pytest.approx(cost.prefill_seconds(0, 1124))
    assert cost.decode_seconds(0, 0) == 0.0


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    cost = CostModel(prefill_token_s=1e-4)
    cost.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json") == cost


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", "object"),
        ("{", "cannot read"),
        (json.dumps({"prefill": 1}), "cost_model.prefill"),
        (json.dumps({"decode_base_s": -1}), "cost_model.decode_base_s"),
        (json.dumps({"decode_base_s": "1"}), "cost_model.decode_base_s"),
        ('{"decode_base_s": NaN}', "cost_model.decode_base_s"),
        (json.dumps({"host_bytes_per_s": 0}), "cost_model.host_bytes_per_s"),
        (json.dumps({"disk_bytes_per_s": 0}), "cost_model.disk_bytes_per_s"),
    ],
)
def test_a_wrong_file_is_refused(content: Any, named: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(content)
    with pytest.raises(InvalidArgument, match=named):
        CostModel.load(tmp_path / "cost.json")
    with pytest.raises(InvalidArgument, match="cannot read"):
        CostModel.load(tmp_path / "absent.json")


@pytest.mark.parametrize("seed", range(20))
def test_decode_batches_in_a_row_take_exactly_what_each_takes(seed: int) -> None:
    draws = random.Random(seed)
    cost = CostModel(decode_context_s=draws.random() * 1e-6)
    start, sequences, context, most = draws.random() * 1e4, draws.randint(1, 64), draws.randint(0, 10**6), draws.randint(1, 40)
    until = start + draws.uniform(-0.2, 1.0)
    now, done = start, 0
    while done < most and (now < until or done == 0):
        now += cost.decode_seconds(sequences, context + done * sequences)
        done += 1
    assert cost.decode_until(until, start, sequences, context, most) == (now, done)
