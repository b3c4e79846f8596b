"""The real engine with a short cut: a batch that no sequence joins or leaves is decoded many tokens at a time.

Recorded replies have hundreds of tokens, so most iterations of the engine only add one token to each running sequence. The
cache notices one in 16 of them, when a sequence needs another block and when a block has filled up. The short cut makes these
calls in the same order and at the same times as the engine would. In between it only moves the clock.
"""

import math
from collections.abc import Sequence as Ids
from collections.abc import Set

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, count
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import Sequence
from pbkv_cluster.simulator.engine.runner import SimulatedRunner


def _no_text(ids: Ids[int]) -> str:
    return ""


class SimulatedEngine(Engine):
    """An engine in simulated time. Every request must force its output and have no stop strings."""

    short_cut = True  # False runs each batch on its own, with the same result

    def __init__(self, runner: SimulatedRunner, config: EngineConfig, cache_config: CacheConfig, clock: ManualClock) -> None:
        super().__init__(runner, config, cache_config, clock, _no_text)
        self._cost = runner.cost
        self._transfers = runner.transfer_engine
        self._loading: dict[str, float] = {}  # seconds that steps wait for what was loaded when they were admitted
        self._time = clock
        self._limits = config

    def advance(self, until: float) -> list[Output]:
        """Runs batches until the clock reads `until`, but at most one that is not a mere decode in which no sequence ends. When
        no sequence can run before loads have arrived, it only waits for these, or until then.

        Returns:
            The outputs of the last batch, which has the first and the last tokens of steps if there are any.
        """
        if self.short_cut and not self._transfers.busy and self._all_decode() and self._leap(until):
            return []
        return self._account_loads(self.step(until - self._time.now()))

    def earliest_end(self) -> float:
        """When a step may end, at the earliest: none takes less than reading the weights for each token that it lacks."""
        left = min(map(_tokens_left, self._sequences.values()), default=1)
        return self._time.now() + (left - 1) * self._cost.decode_base_s

    def _account_loads(self, outputs: list[Output]) -> list[Output]:
        """Counts the time between admission and the end of loads as that, where the engine has counted it to the prefill."""
        if self._transfers.busy:
            for sequence in self.scheduler.running:
                if sequence.handle is not None and sequence.handle.waits_for and sequence.request.id not in self._loading:
                    ready_at = max(map(self._transfers.completed_at, sequence.handle.waits_for))
                    self._loading[sequence.request.id] = max(0.0, ready_at - (sequence.first_scheduled_at or ready_at))
        for output in outputs if self._loading else ():
            if output.usage is not None:
                seconds = min(self._loading.pop(output.request_id, 0.0), output.usage.prefill_s)
                output.usage.load_s += seconds
                output.usage.prefill_s -= seconds
        return outputs

    def _all_decode(self) -> bool:
        running = self.scheduler.running
        return 0 < len(running) < self._limits.max_batch_tokens and all(
            sequence.first_token_at is not None and sequence.total - sequence.computed == 1 for sequence in running
        )

    def _leap(self, until: float) -> bool:
        """Decodes up to the last token but one of a sequence, until the clock reads `until` or another kind of batch is due.

        Returns:
            Whether the clock reads `until` and no batch has been begun that the engine still has to run.
        """
        running = list(self.scheduler.running)
        left = min(map(_tokens_left, running)) - 1
        if left <= 0:
            return False
        for sequence in running:
            sequence.tokens += _forced(sequence, left)
        opening = _by_phase(running, 0)  # by phase: sequences whose token then opens a block
        filling = _by_phase(running, 1)  # by phase: sequences whose token then fills a block
        spans = _spans(opening.keys() | filling.keys())
        context, done = sum(sequence.computed for sequence in running), 0
        waits = self.scheduler.waiting > 0 and len(running) < self._limits.max_running
        begun = False  # a batch: making room for it takes time, and a step that arrives meanwhile has missed it
        while done < left and self._time.now() < until:
            phase = done % BLOCK_TOKENS
            if (
                not all(self._grow(sequence, done) for sequence in opening.get(phase, ()))
                or (waits and self._admits(running, done))
                or self._transfers.busy
            ):
                begun = True  # the engine has to run it: a sequence must be preempted, or was admitted, or blocks are copied
                break
            if self._prefetches():
                begun = True  # a batch whose blocks are being copied
                break
            time, batches = self._cost.decode_until(
                min(until, self._prefetch_at()),
                self._time.now(),
                len(running),
                context + done * len(running),
                min(spans[phase], left - done),
            )
            self._time.advance_to(time)
            done += batches
            self.decode_s = self._cost.decode_seconds(len(running), context + (done - 1) * len(running))
            if waits:  # the engine tries an admission before each batch; none succeeds until a block opens or fills
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

    def _prefetches(self) -> bool:
        """Prefetches, as the engine does before a batch of decodes. Returns whether loads are under way."""
        self.prefetch(self.decode_s)
        return self._transfers.busy

    def _prefetch_at(self) -> float:
        due_at = self.cache.prefetcher.due_at
        return math.inf if due_at is None else due_at

    def _admits(self, running: list[Sequence], done: int) -> bool:
        """Whether the first waiting request fits now, and was admitted to the next batch."""
        for sequence in running:  # the scheduler looks at the sequences' lengths
            sequence.total += done
            sequence.computed += done
        admitted = next(self.scheduler.admissions(), None)
        for sequence in running:
            sequence.total -= done
            sequence.computed -= done
        return admitted is not None

    def _grow(self, sequence: Sequence, done: int) -> bool:
        assert sequence.handle is not None
        return self.cache.grow(sequence.handle, sequence.computed + done + 1)


def _tokens_left(sequence: Sequence) -> int:
    forced = sequence.request.sampling.forced_output
    assert forced is not None, "a simulated request must force its output"
    return min(count(forced), sequence.request.sampling.max_tokens) - sequence.generated


def _forced(sequence: Sequence, tokens: int) -> bytes:
    """The next `tokens` forced tokens of a sequence."""
    forced = sequence.request.sampling.forced_output
    assert forced is not None
    return forced[sequence.generated * TOKEN_BYTES : (sequence.generated + tokens) * TOKEN_BYTES]


def _by_phase(running: list[Sequence], shift: int) -> dict[int, list[Sequence]]:
    """Sequences by phase: the iteration, modulo 16, after which they lack `shift` tokens to a whole number of blocks."""
    phases: dict[int, list[Sequence]] = {}
    for sequence in running:
        phases.setdefault(-(sequence.computed + shift) % BLOCK_TOKENS, []).append(sequence)
    return phases


def _spans(phases: Set[int]) -> list[int]:
    """For each phase, the number of iterations until the next one whose phase is among `phases`."""
    spans = [1] * BLOCK_TOKENS
    for phase in range(2 * BLOCK_TOKENS - 2, -1, -1):
        if (phase + 1) % BLOCK_TOKENS not in phases:
            spans[phase % BLOCK_TOKENS] = 1 + spans[(phase + 1) % BLOCK_TOKENS]
    return spans
