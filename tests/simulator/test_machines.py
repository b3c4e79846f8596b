"""Cost models that are calculated from public figures."""

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.machines import machine, machine_names


def test_the_kv_of_a_token_is_that_of_the_public_configurations() -> None:
    sizes = {name: machine(f"h100-{name}").model.kv_bytes for name in ("8b", "14b", "32b", "70b")}
    assert sizes == {"8b": 131_072, "14b": 196_608, "32b": 262_144, "70b": 327_680}


def test_a_model_runs_on_as_few_gpus_as_can_hold_it() -> None:
    gpus = {name: machine(name).gpus for name in machine_names() if machine(name).gpus > 1}
    assert gpus == {"a100-70b": 4, "h100-70b": 4, "h200-70b": 2, "l40s-32b": 2, "l40s-70b": 4}
    assert all(machine(name).gpu_blocks > 1000 for name in machine_names())


def test_the_default_cost_model_is_near_that_of_a_14b_model_on_an_h100() -> None:
    found, default = machine("h100-14b").cost(), CostModel()
    assert found.prefill_token_s == pytest.approx(default.prefill_token_s, rel=0.1)
    assert found.prefill_context_s == pytest.approx(default.prefill_context_s, rel=0.1)
    assert found.decode_base_s == pytest.approx(default.decode_base_s, rel=0.1)
    assert found.decode_context_s == pytest.approx(default.decode_context_s, rel=0.1)
    assert found.block_bytes == default.block_bytes


@pytest.mark.parametrize("name", machine_names())
def test_no_machine_is_faster_than_its_peaks(name: str) -> None:
    found = machine(name)
    cost, gpu = found.cost(), found.gpu
    assert 2 * found.model.parameters / cost.prefill_token_s < 0.51 * found.gpus * gpu.flops
    assert found.model.weight_bytes / cost.decode_base_s < 0.81 * found.gpus * gpu.memory_bytes_per_s
    assert cost.host_bytes_per_s < found.gpus * gpu.host_bytes_per_s


def test_tensor_parallelism_costs_something() -> None:
    four, one = machine("l40s-70b"), machine("l40s-8b")
    times = four.model.parameters / one.model.parameters
    assert four.cost().prefill_token_s > times * one.cost().prefill_token_s / four.gpus
    assert four.cost().decode_base_s > times * one.cost().decode_base_s / four.gpus
    assert four.cost().host_bytes_per_s == four.gpus * one.cost().host_bytes_per_s


def test_an_unknown_machine_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(InvalidArgument, match=r"machine.*h100-14b.*l40s-70b"):
        machine("h100")
