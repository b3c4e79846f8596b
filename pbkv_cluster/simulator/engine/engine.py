"""The real engine with a short cut: decoding a batch that nothing joins or leaves, many tokens at a time.

Recorded replies have hundreds of tokens, and almost every iteration of the engine does the same: one token for each running
sequence. What the cache sees of that is a block more for a sequence every 16 tokens, and a block that has filled up. The short
cut makes those calls, in the order and at the times at which the engine would; what lies between moves the clock alone.
"""

from collections.abc import Sequence as Ids
from collections.abc import Set

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, count
from pbkv_cluster.gpu_worker.engine.engine import Engine, Output
from pbkv_cluster.gpu_worker.engine.sequence import Sequence
from pbkv_cluster.simulator.engine.runner import SimulatedRunner


def _no_text(ids: Ids[int]) -> str:
    return ""


class SimulatedEngine(Engine):
    """An engine in simulated time. Every request must force its output and have no stop strings."""

    def __init__(self, runner: SimulatedRunner, config: EngineConfig, cache_config: CacheConfig, clock: ManualClock) -> None:
        super().__init__(runner, config, cache_config, clock, _no_text)
        self._cost = runner.cost
        self._time = clock
        self._limits = config

    def advance(self, until: float) -> list[Output]:
        """Runs batches: those that only decode and in which nothing ends, and one after them, until the clock reads `until`.

        Returns:
            The outputs with which steps ended; others are left out.
        """
        if self._all_decode() and self._leap(until):
            return []
        return [output for output in self.step() if output.finished is not None]

    def _all_decode(self) -> bool:
        running = self.scheduler.running
        return 0 < len(running) < self._limits.max_batch_tokens and all(
            sequence.first_token_at is not None and sequence.total - sequence.computed == 1 for sequence in running
        )

    def _leap(self, until: float) -> bool:
        """Batches without the last token of any sequence, until the clock reads `until` or something else has to run.

        Returns:
            Whether the clock reads `until`, and no batch has begun that is still to be run.
        """
        running = list(self.scheduler.running)
        left = min(map(_tokens_left, running)) - 1
        if left <= 0:
            return False
        for sequence in running:
            sequence.tokens += _forced(sequence, left)
        opening = _by_phase(running, 0)  # an iteration's token opens a block
        filling = _by_phase(running, 1)  # it fills one
        spans = _spans(opening.keys() | filling.keys())
        context, done = sum(sequence.computed for sequence in running), 0
        waits = self.scheduler.waiting > 0 and len(running) < self._limits.max_running
        begun = False  # making room takes time, and what comes meanwhile has missed the batch that it is made for
        while done < left and self._time.now() < until:
            phase = done % BLOCK_TOKENS
            if not all(self._grow(sequence, done) for sequence in opening.get(phase, ())) or (
                waits and self._admits(running, done)
            ):
                begun = True  # the engine goes on with it: it has to preempt a sequence, or has admitted one
                break
            time, batches = self._cost.decode_until(
                until, self._time.now(), len(running), context + done * len(running), min(spans[phase], left - done)
            )
            self._time.advance_to(time)
            done += batches
            if waits:  # what did not fit does not fit until a block opens or fills, but is asked for before each batch
                self.scheduler.deferred(batches - 1)
            for sequence in filling.get(phase, ()):
                assert sequence.handle is not None
                self.cache.commit(sequence.handle, sequence.tokens, sequence.computed + done)
        for sequence in running:
            sequence.total += done
            sequence.computed += done
            del sequence.tokens[sequence.total * TOKEN_BYTES :]
        self.steps += done
        return not begun and self._time.now() >= until

    def _admits(self, running: list[Sequence], done: int) -> bool:
        """Whether the first request that waits fits now; the next batch has its first tokens then."""
        for sequence in running:  # the reserve for their next blocks follows from their lengths
            sequence.total += done
        admitted = next(self.scheduler.admissions(), None)
        for sequence in running:
            sequence.total -= done
        return admitted is not None

    def _grow(self, sequence: Sequence, done: int) -> bool:
        assert sequence.handle is not None
        return self.cache.grow(sequence.handle, sequence.computed + done + 1)


def _tokens_left(sequence: Sequence) -> int:
    forced = sequence.request.sampling.forced_output
    assert forced is not None, "a simulated request must force its output"
    return min(count(forced), sequence.request.sampling.max_tokens) - sequence.generated


def _forced(sequence: Sequence, tokens: int) -> bytes:
    """The next tokens of a sequence."""
    forced = sequence.request.sampling.forced_output
    assert forced is not None
    return forced[sequence.generated * TOKEN_BYTES : (sequence.generated + tokens) * TOKEN_BYTES]


def _by_phase(running: list[Sequence], shift: int) -> dict[int, list[Sequence]]:
    """Sequences by the iterations, modulo 16, after whose `shift` tokens more they have a whole number of blocks."""
    phases: dict[int, list[Sequence]] = {}
    for sequence in running:
        phases.setdefault(-(sequence.computed + shift) % BLOCK_TOKENS, []).append(sequence)
    return phases


def _spans(phases: Set[int]) -> list[int]:
    """By phase: iterations from there until the next one, after it, that has one of `phases`."""
    spans = [1] * BLOCK_TOKENS
    for phase in range(2 * BLOCK_TOKENS - 2, -1, -1):
        if (phase + 1) % BLOCK_TOKENS not in phases:
            spans[phase % BLOCK_TOKENS] = 1 + spans[(phase + 1) % BLOCK_TOKENS]
    return spans
