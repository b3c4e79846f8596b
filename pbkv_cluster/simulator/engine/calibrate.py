"""Fits the cost model to a real model on a real device, by least squares over timed batches of many shapes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.runner import Runner
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, StepRequest
from pbkv_cluster.simulator.engine.calibrate_copies import COPIES, HostLoads, LoadingRunner
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.workload.token_source import NAMESPACE

_DECODES = 8  # tokens that each sequence generates
_NO_HOST_BANDWIDTH = 1e15  # for a device without a host tier


class TimedRunner:
    """A runner that records the content and duration of each batch."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        self._runner = runner
        self._clock = clock
        self.gpu_blocks = runner.gpu_blocks
        self.host_blocks = runner.host_blocks
        self.disk_blocks = runner.disk_blocks
        self.vocabulary = runner.vocabulary
        self.max_context = runner.max_context
        self.eos = runner.eos
        self.batches: list[tuple[list[float], float]] = []

    @property
    def transfer_engine(self) -> TransferEngine:
        return self._runner.transfer_engine

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """See `Runner.run`. It returns tokens on the host, so the device has finished by then."""
        start = self._clock.now()
        tokens = self._runner.run(chunks)
        self.batches.append((_terms(chunks), self._clock.now() - start))
        return tokens


def calibrate(
    runner: Runner,
    block_bytes: int,
    clock: Clock,
    lengths: Sequence[int],
    batches: Sequence[int],
    on_progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> CostModel:
    """Times a runner and fits a cost model to it.

    Each combination of prompt length and batch size is prefilled in chunks and decoded for a few tokens. The first one is run
    once more before, to warm up. Then blocks are loaded alone, and beside decodes. Constants that would be negative are 0.

    Args:
        runner: a real runner with an allocated pool.
        block_bytes: bytes of KV of a block.
        clock: a real clock.
        lengths: of prompts, in tokens; those that do not fit are left out.
        batches: batch sizes, in sequences.
        on_progress: called before each measurement with the number of those done, that of all, and what is measured next.
    """
    timed = TimedRunner(runner, clock)
    engine = _engine(timed, clock, max(batches))
    shapes = [(length, sequences) for length in lengths for sequences in batches if _fits(engine, length, sequences)]
    runs = [*shapes[:1], *shapes]
    for number, (length, sequences) in enumerate(runs):
        on_progress(number, len(runs) + 1, f"{sequences} x {length:,} tokens" if number else "warming up")
        _play(engine, timed.vocabulary, number, length, sequences, _DECODES)
        if number == 0:
            timed.batches.clear()
    on_progress(len(runs), len(runs) + 1, "host memory")
    terms = np.array([batch for batch, _ in timed.batches])
    prefill, context, base, sequence, decode = _fit(terms, np.array([seconds for _, seconds in timed.batches]))
    fitted = CostModel(prefill, context, base, sequence, decode, block_bytes=block_bytes)
    most = HostLoads.most(runner)
    if not most:
        return replace(fitted, host_bytes_per_s=_NO_HOST_BANDWIDTH)
    fitted = replace(fitted, host_bytes_per_s=most * block_bytes / HostLoads(runner, clock, most).seconds())
    # Loads no longer than the decode that they run beside: all of such a load is beside it. A short context fits into any pool.
    blocks = min(most, max(1, int(fitted.decode_seconds(1, BLOCK_TOKENS) / fitted.copy_seconds(1))))
    loading = LoadingRunner(runner, HostLoads(runner, clock, blocks), clock)
    _play(_engine(loading, clock, 1), runner.vocabulary, len(runs), BLOCK_TOKENS, 1, 2 * COPIES)
    delay = loading.delay_s / fitted.copy_seconds(blocks)
    return replace(fitted, copy_delay=min(max(delay, 0.0), 1.0))


def _engine(runner: Runner, clock: Clock, sequences: int) -> Engine:
    config = EngineConfig(allow_forced_output=True, max_running=sequences)
    return Engine(runner, config, CacheConfig(policy="lru"), clock, lambda ids: "")


def _fits(engine: Engine, length: int, sequences: int) -> bool:
    pool = engine.max_context  # tokens; one block less than the pool has, or what the model was made for
    return (
        length + _DECODES < pool
        and (length + _DECODES + 2 * BLOCK_TOKENS) * sequences <= engine.cache.tiers.room() * BLOCK_TOKENS
    )


def _play(engine: Engine, vocabulary: int, number: int, length: int, sequences: int, decodes: int) -> None:
    draws = np.random.default_rng(number)
    output = pack([1] * decodes)
    for sequence in range(sequences):
        name = f"{number}/{sequence}"
        prompt = draws.integers(0, vocabulary, length).astype("<i4").tobytes()
        sampling = SamplingParams(max_tokens=decodes, forced_output=output)
        engine.submit(StepRequest(name, name, "agent", 0, NAMESPACE, prompt, sampling))
    while engine.busy:
        engine.step()
    engine.cache.clear()


def _terms(chunks: Sequence[Chunk]) -> list[float]:
    """The factors of the cost model's constants for one batch."""
    decodes = [chunk for chunk in chunks if chunk.count == 1 and chunk.final]
    prefills = [chunk for chunk in chunks if not (chunk.count == 1 and chunk.final)]
    return [
        float(sum(chunk.count for chunk in prefills)),
        sum(((chunk.start + chunk.count) ** 2 - chunk.start**2) / 2 for chunk in prefills),
        float(bool(decodes)),
        float(len(decodes)),
        float(sum(chunk.start for chunk in decodes)),
    ]


def _fit(terms: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> list[float]:
    """Least squares of the relative error, so that a decode counts as much as a prefill. Negative constants become 0."""
    weight = 1 / np.maximum(seconds, 1e-9)
    terms, target = terms * weight[:, None], seconds * weight
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-30)
    kept = list(range(terms.shape[1]))
    found = np.zeros(terms.shape[1])
    while kept:
        solution = np.linalg.lstsq(terms[:, kept] / scale[kept], target, rcond=None)[0]
        if (solution >= 0).all():
            found[kept] = solution / scale[kept]
            break
        kept.pop(int(solution.argmin()))
    return [float(value) for value in found]
