"""The first token of a step whose prompt lies in the host tier, with loads that arrive layer by layer and as a whole."""

from itertools import count
from pathlib import Path
from statistics import median

import torch

from benchmarks.report import Figure
from benchmarks.timing import in_turn, ratio, seconds
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig, ModelConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner

CPU = torch.device("cpu")
TOKENS, NEW_TOKENS = 4096, 64  # of a prompt: cached, and to be computed


def figures(path: Path, rounds: int) -> list[Figure]:
    """Runs a model of `path` on the CPU in engines of both kinds, in turn."""
    model = load_model(ModelConfig(path=str(path)), CPU)
    by_layer, whole = HostHit(model, True), HostHit(model, False)
    runs = {"by_layer": by_layer.hit, "whole": whole.hit, "cold": whole.cold}
    in_turn(1, **runs)
    found = in_turn(rounds, **runs)
    block = model.shape.block_bytes
    what = f"first token, {TOKENS:,} tokens in host memory ({TOKENS // BLOCK_TOKENS * block / 1e6:.0f} MB) and {NEW_TOKENS} new"
    return [
        Figure(f"{what}, load as a whole", median(found["whole"]) * 1e3, "ms"),
        Figure(f"{what}, load by layer", median(found["by_layer"]) * 1e3, "ms"),
        Figure("load by layer over load as a whole", ratio(found, "by_layer", "whole"), "x"),
        Figure("load as a whole over computing all of it", ratio(found, "whole", "cold"), "x"),
    ]


class HostHit:
    """An engine whose host tier has the prefix of every prompt."""

    def __init__(self, model: LoadedModel, by_layer: bool) -> None:
        blocks = 2 * (TOKENS + NEW_TOKENS) // BLOCK_TOKENS
        config = EngineConfig(gpu_blocks=blocks, host_blocks=2 * blocks, device="cpu", load_by_layer=by_layer)
        runner = TorchRunner(model, config, CPU)
        runner.allocate()
        self._engine = Engine(runner, config, CacheConfig(policy="lru", prefetch="none"), SystemClock(), lambda ids: "")
        self._model = model
        self._prefix = self._tokens(TOKENS)
        self._numbers = count()
        self._first_token(self._prefix)

    def hit(self) -> float:
        """Seconds to the first token of a prompt that begins with the prefix."""
        self._to_host()
        loaded = self._engine.decisions["load"]
        taken = self._first_token(self._prefix + self._tokens(NEW_TOKENS))
        assert self._engine.decisions["load"] - loaded == TOKENS // BLOCK_TOKENS
        return taken

    def cold(self) -> float:
        """Seconds to the first token of a new prompt of the same length."""
        self._to_host()
        return self._first_token(self._tokens(TOKENS + NEW_TOKENS))

    def _to_host(self) -> None:
        """Evicts everything from the GPU."""
        tiers = self._engine.cache.tiers
        slots = tiers.take(tiers.room())
        assert slots is not None
        tiers.give(slots)
        assert self._engine.cache.used_blocks(Tier.GPU) == 0

    def _tokens(self, tokens: int) -> list[int]:
        return [int(token) for token in torch.randint(0, self._model.vocabulary, (tokens,))]

    def _first_token(self, prompt: list[int]) -> float:
        number = str(next(self._numbers))
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        self._engine.submit(StepRequest(number, "workflow", "agent", 0, self._model.namespace(), pack(prompt), sampling))

        def finish() -> None:
            while self._engine.busy:
                self._engine.step()

        return seconds(finish)
