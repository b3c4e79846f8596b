"""Our engine and plain `transformers`, on the same weights and one thread: prefill, decode, batching, and a prefix hit."""

import argparse
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import Figure, Report
from benchmarks.timing import in_turn, ratio, seconds
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig, ModelConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.gpu_worker.model import random_model
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner

CPU = torch.device("cpu")
BATCH, OUTPUT = 8, 33  # decode: sequences, output tokens of each
CONTEXTS = (256, 1024)  # decode: prompt tokens before the output
PROMPTS = (1024, 4096)  # prefill: prompt tokens


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    figures: list[Figure] = []
    sizes = []
    for name, size in {"small": "5m"}.items() if quick else {"small": "5m", "larger": "24m"}.items():
        side = Bench(random_model.cached(size))
        kv = side.model.shape.block_bytes // BLOCK_TOKENS
        sizes.append(f"{name} model: {side.parameters / 1e6:.1f} M parameters, {kv} bytes of KV a token")
        rounds = 2 if quick else 6 if name == "small" else 3
        for tokens in PROMPTS[:1] if quick else PROMPTS:
            figures += side.prefill(name, tokens, rounds)
        for context in CONTEXTS[:1] if quick else CONTEXTS:
            figures += side.decode(name, context, rounds)
    return Report("engine", "; ".join(sizes) + f"; decode: {OUTPUT - 1} tokens; one thread", tuple(figures))


class Bench:
    """One model, in our engine and in `transformers`."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: LoadedModel = load_model(ModelConfig(path=str(path)), CPU)
        auto: Any = AutoModelForCausalLM
        self.plain: Any = auto.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.parameters = sum(weights.numel() for weights in self.plain.parameters())
        config = EngineConfig(gpu_blocks=2 * BATCH * (max(CONTEXTS) + OUTPUT) // BLOCK_TOKENS, host_blocks=0, device="cpu")
        runner = TorchRunner(self.model, config, CPU)
        runner.allocate()
        self.engine = Engine(runner, config, CacheConfig(), SystemClock(), lambda ids: "")
        self._ids = count()

    def prefill(self, name: str, tokens: int, rounds: int) -> list[Figure]:
        """Time to the first output token of a new prompt, and of the same prompt again when all of it is cached."""
        again: list[int] = []

        def cold() -> float:
            again[:] = self._prompt(tokens)
            return seconds(lambda: self._complete(again, 1))

        def hit() -> float:
            return seconds(lambda: self._complete(again, 1))

        def plain() -> float:
            prompt = torch.tensor([self._prompt(tokens)])
            return seconds(lambda: self._forward(prompt, None))

        in_turn(1, cold=cold, hit=hit, plain=plain)  # once to warm up
        found = in_turn(rounds, cold=cold, hit=hit, plain=plain)
        what = f"{name}: prefill {tokens:,}"
        return [
            Figure(f"{what}, engine", tokens / median(found["cold"]), "tokens/s"),
            Figure(f"{what}, transformers", tokens / median(found["plain"]), "tokens/s"),
            Figure(f"{what}, engine over transformers", ratio(found, "plain", "cold"), "x", at_least=0.95),
            Figure(f"{name}: first token, {tokens:,} cached", median(found["hit"]) * 1e3, "ms"),
            Figure(f"{name}: first token, cold over cached {tokens:,}", ratio(found, "cold", "hit"), "x"),
        ]

    def decode(self, name: str, context: int, rounds: int) -> list[Figure]:
        """Decode after a cached prompt: a batch of sequences, one sequence, and one sequence in `transformers`."""
        prompts = [self._prompt(context) for _ in range(BATCH)]

        def batch() -> float:
            return self._decode(prompts) / BATCH

        def single() -> float:
            return self._decode(prompts[:1])

        def plain() -> float:
            return self._plain_decode(prompts[0])

        runs: Mapping[str, Callable[[], float]] = {"batch": batch, "single": single, "plain": plain}
        in_turn(1, **runs)
        found = in_turn(rounds, **runs)
        what = f"{name}: decode after {context:,}"
        rates = {kind: (OUTPUT - 1) / median(taken) for kind, taken in found.items()}
        return [
            Figure(f"{what}, engine one by one", rates["single"], "tokens/s"),
            Figure(f"{what}, transformers one by one", rates["plain"], "tokens/s"),
            Figure(f"{what}, engine over transformers", ratio(found, "plain", "single"), "x"),
            Figure(f"{what}, engine {BATCH} together", rates["batch"], "tokens/s"),
            Figure(f"{what}, {BATCH} together over one by one", ratio(found, "single", "batch"), "x", at_least=3),
        ]

    def _prompt(self, tokens: int) -> list[int]:
        return [int(token) for token in torch.randint(0, self.model.vocabulary, (tokens,))]

    def _submit(self, prompt: list[int], output: int) -> None:
        number = str(next(self._ids))
        sampling = SamplingParams(max_tokens=output, ignore_eos=True)
        self.engine.submit(StepRequest(number, "workflow", "agent", 0, self.model.namespace(), pack(prompt), sampling))

    def _complete(self, prompt: list[int], output: int) -> None:
        self._submit(prompt, output)
        while self.engine.busy:
            self.engine.step()

    def decode_steps(self, context: int, between: Callable[[], None]) -> float:
        """Seconds that the decode of a batch takes, with something done between its steps."""
        return self._decode([self._prompt(context) for _ in range(BATCH)], between)

    def _decode(self, prompts: list[list[int]], between: Callable[[], None] = lambda: None) -> float:
        """Seconds from the first to the last output token of sequences that run in one batch."""
        for prompt in prompts:
            self._submit(prompt, OUTPUT)
        first = 0
        while first < len(prompts):
            first += len(self.engine.step())

        def finish() -> None:
            while self.engine.busy:
                between()
                self.engine.step()

        return seconds(finish)

    def _plain_decode(self, prompt: list[int]) -> float:
        token, cache = self._forward(torch.tensor([prompt]), None)

        def finish() -> None:
            last = token
            for _ in range(OUTPUT - 1):
                last, _cache = self._forward(last, cache)

        return seconds(finish)

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        output = self.plain(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
