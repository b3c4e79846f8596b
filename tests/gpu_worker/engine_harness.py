"""Runs an engine until all its requests have ended; and computes the same with plain `transformers`."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner
from tests.cache.late_transfers import LateEngine


@dataclass
class Result:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finished: FinishReason | None = None
    usage: Usage | None = None
    hidden: bytes = b""
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def ids(length: int, seed: int = 0) -> list[int]:
    """A prompt of random tokens."""
    generator = random.Random(seed)
    return [generator.randrange(5, 4000) for _ in range(length)]


def decode(ids: Sequence[int]) -> str:
    """One character for each token, so that the text shows the tokens."""
    return "".join(chr(0x4E00 + token) for token in ids)


class LateTorchEngine(LateEngine):
    """Copies real KV, as late as may be: a layer of a load when it is waited for, and the whole when the transfer is done."""

    labelled = True

    def __init__(self, engine: TransferEngine, storage: KvStorage, seed: int, by_layer: bool) -> None:
        """Args:
        engine: makes the copies, each block at once.
        storage: that is copied in.
        seed: of what is left to chance.
        by_layer: whether loads from the host arrive layer by layer.
        """
        super().__init__(seed)
        self._engine = engine
        self._storage = storage
        self._by_layer = by_layer
        self.waits: list[int] = []  # for layers, in order
        self.seconds_left: float | None = None  # of every load; None: 0, or infinite, at random
        self.fails_at: int | None = None  # layer from which on loads bring nothing

    def submit(self, transfer: Transfer) -> bool:
        if self._by_layer and transfer.urgent and (transfer.source, transfer.target) == (Tier.HOST, Tier.GPU):
            left = self._random.choice((0.0, math.inf)) if self.seconds_left is None else self.seconds_left
            transfer.layers = LateLayers(self, transfer, left)
        return super().submit(transfer)

    def arrive(self, transfer: Transfer, layer: int) -> None:
        """A step is about to read a layer of what a transfer writes."""
        self.waits.append(layer)
        if transfer in self._open and (self.fails_at is None or layer < self.fails_at):
            self.wait(transfer.after)
            host, gpu = (
                pool.view(len(pool), self._storage.shape.layers, -1) for pool in (self._storage.host, self._storage.gpu)
            )
            gpu[list(transfer.target_slots), layer] = host[list(transfer.source_slots), layer]

    def _copy(self, transfer: Transfer) -> None:
        if not self._engine.submit(transfer):
            self._engine.wait((transfer,))
            assert list(self._engine.completed()) == [transfer]
        if self.fails_at is not None and transfer.layers is not None:
            transfer.failed = transfer.target_slots
            self._fill(Tier.GPU, transfer.failed)

    def _fill(self, kind: Tier, slots: Slots) -> None:
        self._storage.pools[kind][list(slots)] = math.nan


class LateLayers:
    """See `LateTorchEngine`."""

    def __init__(self, engine: LateTorchEngine, transfer: Transfer, left: float) -> None:
        self._engine = engine
        self._transfer = transfer
        self._left = left

    def wait(self, layer: int) -> None:
        self._engine.arrive(self._transfer, layer)

    def seconds_left(self) -> float:
        return self._left


def make_engine(
    model: LoadedModel,
    policy: str = "pbkv-paper",
    late: int | None = None,
    write_through: bool = False,
    pools: list[KvStorage] | None = None,
    prefetch: Literal["none", "conservative", "queue"] = "queue",
    clock: Clock | None = None,
    transfers: list[LateTorchEngine] | None = None,
    **fields: Any,
) -> Engine:
    """An engine on the CPU. Its transfers are carried out by threads, or as late as may be if `late` gives a seed for that.

    The engine's pools are added to `pools`, and what makes its transfers late to `transfers`.
    """
    by_layer = fields.pop("load_by_layer", True)
    defaults = {"gpu_blocks": 64, "host_blocks": 32, "device": "cpu", "allow_forced_output": True}
    config = EngineConfig(**{**defaults, **fields, "load_by_layer": by_layer and late is None})
    cache_config = CacheConfig(policy=policy, write_through=write_through, prefetch=prefetch)
    runner = TorchRunner(model, config, torch.device("cpu"))
    runner.allocate()
    if pools is not None:
        pools.append(runner.storage)
    if late is None:
        return Engine(runner, config, cache_config, clock or SystemClock(), decode, worker_id="w")
    runner.transfer_engine = late_engine = LateTorchEngine(runner.transfer_engine, runner.storage, late, by_layer)
    engine = Engine(runner, config, cache_config, clock or SystemClock(), decode, worker_id="w")
    late_engine.watch(engine.cache.tiers.pools)
    if transfers is not None:
        transfers.append(late_engine)
    return engine


def request(
    model: LoadedModel, name: str, prompt: list[int], workflow: str = "wf", agent: str = "a", step: int = 0, **sampling: Any
) -> StepRequest:
    sent = pack(sampling.pop("sent", []))
    priority = sampling.pop("priority", 0)
    return StepRequest(
        name,
        workflow,
        agent,
        step,
        model.namespace(),
        pack(prompt),
        SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling}),
        sent,
        priority,
    )


def collect(engine: Engine, results: dict[str, Result], steps: int | None = None) -> None:
    """Steps the engine until it is idle, or `steps` times, checking the cache after each."""
    taken = 0
    while engine.busy and (steps is None or taken < steps):
        taken += 1
        for output in engine.step():
            result = results.setdefault(output.request_id, Result())
            assert result.finished is None, "an output after the last one"
            result.tokens.extend(output.tokens)
            result.text += output.text
            result.logprobs.extend(output.logprobs)
            result.finished, result.usage, result.hidden = output.finished, output.usage, output.hidden
        engine.cache.check_integrity()


def run(engine: Engine, *requests: StepRequest) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for each in requests:
        engine.submit(each)
    collect(engine, results)
    return results


def reference(model: LoadedModel, prompt: list[int], tokens: int) -> list[int]:
    """Greedy output of plain `transformers.generate`, the end-of-sequence token ignored."""
    module, eos = model.module, model.module.generation_config.eos_token_id
    module.set_attn_implementation("sdpa")
    module.generation_config.eos_token_id = None
    try:
        out = module.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    finally:
        module.set_attn_implementation(IMPLEMENTATION)
        module.generation_config.eos_token_id = eos
    return [int(token) for token in out[0, len(prompt) :]]
