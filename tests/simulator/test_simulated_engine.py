"""The simulated engine makes the real engine's decisions: with and without its short cut, and with a real model."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig, ModelConfig
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.gpu_worker.model.loading import load_model
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner
from pbkv_cluster.simulator.engine import worker
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.runner import SimulatedRunner
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from tests.simulator.simulated import source

SETUPS = {
    "roomy": Setup(400),
    "tight": Setup(80, 40, "pbkv-paper"),
    "few at a time": Setup(80, 0, "retired-lru", engine=EngineConfig(max_running=2)),
    "small batches": Setup(70, 0, engine=EngineConfig(max_batch_tokens=24, prefill_chunk_tokens=16)),
    "no room": Setup(64, 16, "pbkv-paper"),
    "others wait": Setup(56, 0, engine=EngineConfig(max_running=5)),
    "copies beside compute": Setup(80, 60, "pbkv-paper", cost=CostModel(host_bytes_per_s=6e9, copy_delay=0.1)),
}


def counts(result: SimulationResult) -> dict[str, Any]:
    """The decisions and hits of a run, without times."""
    meter = result.meter
    return {
        "decisions": {name: number for name, number in result.decisions.items() if number},
        "delivered": meter.delivered,
        "captured": meter.captured,
        "computed": meter.computed_tokens,
        "generated": meter.generated_tokens,
        "preemptions": result.preemptions,
        "steps": [(record.arrival, record.position, record.delivered) for record in result.steps],
    }


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("seed", range(3))
def test_many_tokens_at_a_time_are_the_same_as_one_by_one(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = simulate(source(seed=seed), SETUPS[name])
    monkeypatch.setattr(SimulatedEngine, "short_cut", False)
    slow = simulate(source(seed=seed), SETUPS[name])
    assert fast == slow


class _VirtualTransferEngine:
    """Copies real bytes in virtual time."""

    labelled = True

    def __init__(self, real: TransferEngine, simulated: TransferEngine) -> None:
        self._real = real
        self._simulated = simulated

    def submit(self, transfer: Transfer) -> bool:
        if not self._real.submit(transfer):
            self._real.wait((transfer,))
            self._real.completed()
        return self._simulated.submit(transfer)

    def completed(self) -> Sequence[Transfer]:
        return ()

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        pass

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        return 0

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return self._simulated.seconds(source, target, blocks)

    def erase(self, tier: Tier, slots: Slots) -> None:
        self._real.erase(tier, slots)


class _VirtualRunner:
    """Runs a real model in virtual time."""

    def __init__(self, real: TorchRunner, simulated: SimulatedRunner) -> None:
        self._real = real
        self._simulated = simulated
        self.transfer_engine: TransferEngine = _VirtualTransferEngine(real.transfer_engine, simulated.transfer_engine)
        self.gpu_blocks, self.host_blocks, self.disk_blocks = real.gpu_blocks, real.host_blocks, real.disk_blocks
        self.vocabulary, self.max_context, self.eos = real.vocabulary, real.max_context, real.eos

    def run(self, chunks: list[Chunk]) -> list[int]:
        tokens = self._real.run(chunks)
        self._simulated.run(chunks)
        return tokens


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper"])
def test_a_real_model_meets_the_same_decisions(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    build(tmp_path, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16)
    model = load_model(ModelConfig(path=str(tmp_path)), torch.device("cpu"))
    setup = Setup(64, 32, policy)
    simulated = simulate(source(8), setup)

    class RealEngine(Engine):
        def __init__(
            self, runner: SimulatedRunner, config: EngineConfig, cache_config: CacheConfig, clock: ManualClock
        ) -> None:
            sizes = {"gpu_blocks": runner.gpu_blocks, "host_blocks": runner.host_blocks}
            torch_runner = TorchRunner(model, config.model_copy(update=sizes), torch.device("cpu"))
            torch_runner.allocate()
            virtual: Any = _VirtualRunner(torch_runner, runner)
            super().__init__(virtual, config, cache_config, clock, lambda ids: "")

        def advance(self, until: float) -> list[Output]:
            return self.step()

    monkeypatch.setattr(worker, "SimulatedEngine", RealEngine)
    real = simulate(source(8), setup)
    assert counts(real) == counts(simulated)
    assert simulated.decisions["evict_active"] + simulated.decisions["evict_retired"] > 0
    assert simulated.decisions["load"] > 0
