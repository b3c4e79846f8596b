"""The engine of one worker: requests in, tokens out. A plain object without threads or network, run step by step."""

from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Ids
from dataclasses import replace
from math import isfinite

from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.prefetch.planner import QUEUED_MAX, QueuedPrompt
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.core import checks
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.core.load_speeds import LoadSpeed, LoadSpeeds
from pbkv_cluster.core.tokens import BLOCK_TOKENS, check_ids, count, unpack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.gpu_worker.engine.runner import Runner
from pbkv_cluster.gpu_worker.engine.scheduler import Scheduler
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, Sequence, StepRequest
from pbkv_cluster.gpu_worker.engine.text_stream import TextStream

_LOADED = 64  # blocks of the load whose time tells what a token takes: about those of a prompt
_IDLE_S, _IDLE_MIN_S = 0.05, 0.01  # that loads may take at a time while nothing runs; between two looks


class Engine:
    """Scheduler, cache and runner of one worker. Not thread-safe."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        cache_config: CacheConfig,
        clock: Clock,
        decode: Callable[[Ids[int]], str],
        on_change: ChangeListener | None = None,
        worker_id: str = "",
        special_tokens: Mapping[int, str] | None = None,
        elsewhere: Elsewhere = NOWHERE,
        log: DecisionLog | None = None,
    ) -> None:
        """Args:
        runner: executes the batches.
        config: limits of the batches and the queue.
        cache_config: names the policies.
        clock: for the usage records and the policies.
        decode: returns the text of token ids.
        on_change: called for every block that enters or leaves a tier.
        worker_id: for the usage records.
        special_tokens: what stop strings write for tokens that `decode` leaves out.
        elsewhere: what other workers hold; the runner's transfer engine can fetch it.
        log: told of every decision of the cache about blocks; None: there is none.
        """
        self._runner = runner
        self._config = config
        self._clock = clock
        self._decode = decode
        self._worker_id = worker_id
        self._special_tokens = special_tokens or {}
        self._elsewhere = elsewhere
        self.policy = cache_config.policy
        self._prefill_rate = PrefillRate()
        capacity = {Tier.GPU: runner.gpu_blocks, Tier.HOST: runner.host_blocks}
        if runner.disk_blocks:  # otherwise it would only cost each node of the tree some bytes
            capacity[Tier.DISK] = runner.disk_blocks
        self.cache = make_cache(
            capacity,
            cache_config,
            runner.transfer_engine,
            clock,
            on_change,
            compute_seconds=self._prefill_rate.seconds,
            elsewhere=elsewhere,
            log=log,
        )
        self.scheduler = Scheduler(self.cache, config, clock, self._prefill_rate.seconds, self._batch_seconds)
        # A sequence must fit in the pool together with the block that its next token begins.
        self.max_context = min(runner.max_context, (runner.gpu_blocks - 1) * BLOCK_TOKENS)
        self.steps = 0
        self.decode_s = 0.0  # that the latest batch of decodes alone took; 0: there was none
        self._arrivals = 0
        self._sequences: dict[str, Sequence] = {}
        self._ready: list[Output] = []

    @property
    def decisions(self) -> Counter[str]:
        """What cache, scheduler and fetches have decided, by reason code."""
        return self.cache.tiers.decisions + self.scheduler.decisions + self._elsewhere.decisions

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._sequences or self._ready)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Moving average; 0 before the first prefill."""
        return self._prefill_rate.tokens_per_second

    @property
    def load_speeds(self) -> LoadSpeeds | None:
        """How fast tokens come to the GPU; None before the first prefill."""
        prefill_token_s, loads = self._prefill_rate.seconds(1), dict[Tier, LoadSpeed]()
        for tier in (each for each in Tier if each is not Tier.GPU):
            queue_s, all_s = (self.cache.tiers.costs.copy_seconds(tier, Tier.GPU, blocks) for blocks in (0, _LOADED))
            if all_s:
                loads[tier] = LoadSpeed((all_s - queue_s) / (_LOADED * BLOCK_TOKENS), queue_s)
        return LoadSpeeds(prefill_token_s, loads) if isfinite(prefill_token_s) else None

    def submit(self, request: StepRequest) -> None:
        """Queues a step.

        Raises:
            InvalidArgument: a token is outside the vocabulary, or the prompt is empty or too long.
            FailedPrecondition: the request forces its output, and `engine.allow_forced_output` is off.
            ResourceExhausted: the queue is full, or the tenant has taken its share of it.
        """
        self._check(request)
        if self.scheduler.waiting >= self._config.max_waiting:
            raise ResourceExhausted(f"the worker's queue is full ({self._config.max_waiting} steps, engine.max_waiting)")
        own = self.scheduler.waiting_of(request.namespace.salt)
        if not has_fair_room(own, self.scheduler.waiting, self._config.max_waiting):
            raise ResourceExhausted(
                f"{own} steps of the tenant wait, and leave room in the queue to others (engine.max_waiting)"
            )
        room = self.max_context - count(request.prompt)
        if request.sampling.max_tokens > room:
            request = replace(request, sampling=replace(request.sampling, max_tokens=room))
        self._arrivals += 1
        usage = Usage(prompt_tokens=count(request.prompt), worker_id=self._worker_id)
        text = TextStream(self._decode, request.sampling.stop, self._special_tokens)
        sequence = Sequence(request, self._arrivals, self._clock.now(), text, usage)
        usage.captured = self.cache.captured(sequence.namespace, request.prompt)
        self._sequences[request.id] = sequence
        finished = None
        recovered = ""
        for token in unpack(request.sent):
            recovered += text.push(token)
            finished = self._finish_reason(sequence, token)
        if finished is not None:
            self._end(sequence, (), recovered, finished)
            return
        if recovered:
            self._ready.append(Output(request.id, (), recovered))
        self.scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """Drops a step and frees its blocks. Does nothing if the step has ended already."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.remove(sequence)

    def step(self, wait_s: float | None = None) -> list[Output]:
        """Runs one batch and returns what it produced: nothing if for `wait_s` seconds all that could run waits for loads."""
        chunks = self.scheduler.schedule(wait_s)
        if chunks:
            self.steps += 1
            decodes = all(_is_decode(chunk) for chunk in chunks)
            if decodes:
                self.prefetch(self.decode_s)
            all_loaded = all(self.scheduler.loads.have_arrived(chunk.sequence) for chunk in chunks)
            start = self._clock.now()
            tokens = iter(self._runner.run(chunks))
            results = [(chunk, next(tokens) if chunk.final else None) for chunk in chunks]
            if not all_loaded:
                results = [result for result in results if self._counts(result[0])]
            now = self._clock.now()
            if decodes and all_loaded:
                self.decode_s = now - start
            elif all_loaded:
                self._measure(chunks, now - start)
            for chunk, token in results:
                prefilled = chunk.count if chunk.sequence.first_token_at is None or not chunk.final else chunk.count - 1
                chunk.sequence.usage.computed_tokens += prefilled
                self.scheduler.computed(chunk)
                if token is not None:
                    self._take(chunk.sequence, token, now)
        outputs, self._ready = self._ready, []
        return outputs

    def prefetch(self, seconds: float) -> int:
        """Starts loads of blocks that will be wanted on the GPU, as many as take so many seconds. Returns the blocks."""
        due_at = self.cache.prefetcher.due_at
        if due_at is None or self._clock.now() < due_at:
            return 0
        self.cache.poll()
        return self.cache.prefetcher.run(seconds, [QueuedPrompt(*each) for each in self.scheduler.next_prompts(QUEUED_MAX)])

    @property
    def idle_s(self) -> float | None:
        """Seconds after which an idle engine has something to do; None: nothing."""
        if self._awaits_transfers:
            return _IDLE_MIN_S
        due_at = self.cache.prefetcher.due_at
        if due_at is None or not self.cache.workflows.all():
            return None
        return max(_IDLE_MIN_S, due_at - self._clock.now())

    def run_idle(self) -> None:
        """Does what is due while nothing runs: prefetches, and what ended transfers give to copy and to announce."""
        if self._awaits_transfers:
            self.cache.poll()
        if self.cache.workflows.all():
            self.prefetch(_IDLE_S)

    @property
    def _awaits_transfers(self) -> bool:
        """Whether something is due when transfers end, though no step waits for them."""
        return bool(self.cache.late_writes or self.cache.tiers.announcements.arriving)

    def _check(self, request: StepRequest) -> None:
        tokens = count(request.prompt)
        checks.not_empty("prompt", request.prompt)
        if tokens >= self.max_context:
            raise InvalidArgument("prompt", f"has {tokens} tokens, and this worker takes at most {self.max_context - 1}")
        forced = request.sampling.forced_output
        if forced is not None and not self._config.allow_forced_output:
            raise FailedPrecondition("sampling.forced_output: this server does not allow replay (engine.allow_forced_output)")
        for field, packed in (
            ("prompt.token_ids", request.prompt),
            ("sampling.forced_output", forced or b""),
            ("sent", request.sent),
        ):
            check_ids(field, packed, self._runner.vocabulary)

    def _counts(self, chunk: Chunk) -> bool:
        """Whether what a chunk was computed on has arrived. If not, nothing of it is kept, and its sequence is queued again."""
        if self.scheduler.loads.settle(chunk):
            return True
        if chunk.ends_prompt:
            chunk.sequence.hidden = b""
        return False

    def _take(self, sequence: Sequence, token: int, now: float) -> None:
        if (forced := sequence.forced_token) is not None:
            token = forced
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        sequence.append(token)
        self.scheduler.charge_output(sequence)
        text = sequence.text.push(token)
        finished = self._finish_reason(sequence, token)
        if finished is None:
            self._ready.append(Output(sequence.request.id, (token,), text, logprobs=_logprobs(sequence)))
            self.scheduler.lengthened(sequence)
        else:
            self.scheduler.remove(sequence)
            self._end(sequence, (token,), text, finished)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if sequence.text.stopped:
            return FinishReason.STOP
        if sampling.forced_output is not None:
            ended = sequence.generated >= min(count(sampling.forced_output), sampling.max_tokens)
            return FinishReason.LENGTH if ended else None
        if token in self._runner.eos and not sampling.ignore_eos:
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.generated >= sampling.max_tokens else None

    def _end(self, sequence: Sequence, tokens: tuple[int, ...], text: str, reason: FinishReason) -> None:
        del self._sequences[sequence.request.id]
        usage, now = sequence.usage, self._clock.now()
        first = sequence.first_token_at or now
        usage.generated_tokens = sequence.generated
        usage.prefill_s = first - (sequence.first_scheduled_at or first)
        usage.decode_s = now - first
        usage.settle()
        text += sequence.text.finish()
        logprobs = _logprobs(sequence) if tokens else ()
        speeds = self.load_speeds
        self._ready.append(Output(sequence.request.id, tokens, text, reason, usage, sequence.hidden, logprobs, speeds))

    def _batch_seconds(self, tokens: int) -> float:
        prefill = self._prefill_rate.seconds(tokens)
        return max(self.decode_s, prefill if isfinite(prefill) else 0.0)

    def _measure(self, chunks: list[Chunk], seconds: float) -> None:
        prefill = sum(chunk.count for chunk in chunks if chunk.count > 1)
        if prefill > 2 * (len(chunks) - 1):  # then the decodes of the batch hardly count
            self._prefill_rate.add(prefill, seconds)


def _logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...]:
    return () if sequence.logprobs is None else (sequence.logprobs,)


def _is_decode(chunk: Chunk) -> bool:
    return chunk.count == 1 and chunk.final and chunk.sequence.first_token_at is not None
