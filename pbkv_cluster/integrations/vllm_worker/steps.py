"""One step: a request for vLLM, and from what vLLM generates text, stop strings and the usage record."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted, Unavailable
from pbkv_cluster.core.tokens import check_ids, count, unpack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.gpu_worker.engine.text_stream import TextStream
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineContract, EngineRequest, PhaseTimes, Piece
from pbkv_cluster.integrations.vllm_worker.engine.sampling import vllm_sampling
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.integrations.vllm_worker.hints import HintBook

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_MIN_PREFILL = 64  # tokens: the time of fewer says little of how fast prefill is


@dataclass(frozen=True, slots=True)
class TextRules:
    """How output becomes text, and where it ends."""

    decode: Callable[[Sequence[int]], str]
    special_tokens: Mapping[int, str]  # what stop strings write for tokens that `decode` leaves out
    ends: frozenset[int]  # tokens after which an output is complete


class StepRunner:
    """Runs steps on vLLM's engine. Belongs to one event loop."""

    def __init__(
        self,
        engine: EngineContract,
        held: HeldBlocks,
        hints: HintBook,
        text: TextRules,
        config: EngineConfig,
        worker_id: str,
    ) -> None:
        """Args:
        engine: vLLM's.
        held: what it holds.
        hints: what it is told with requests.
        text: how output becomes text.
        config: limits of the queue.
        worker_id: for the usage records.
        """
        self._engine = engine
        self._held = held
        self._hints = hints
        self._text = text
        self._config = config
        self._worker_id = worker_id
        self._active: set[str] = set()
        self.prefill_rate = PrefillRate()

    @property
    def running(self) -> int:
        """Steps that vLLM's scheduler runs."""
        return min(self._engine.load.running, len(self._active))

    @property
    def waiting(self) -> int:
        """Steps that wait for it."""
        return len(self._active) - self.running

    async def run(self, step: StepRequest) -> AsyncGenerator[Output, None]:
        """Runs a step and yields its outputs. Closing the generator early cancels the step.

        Raises:
            InvalidArgument: a token is outside the vocabulary, or the prompt is empty or too long.
            FailedPrecondition: the step asks for what vLLM cannot do.
            ResourceExhausted: too many steps wait.
            Unavailable: the engine has ended, or has failed at this step.
        """
        self._check(step)
        usage = Usage(prompt_tokens=count(step.prompt), worker_id=self._worker_id)
        usage.captured = self._held.match(block_keys(step.namespace, step.prompt))
        captured = dict(usage.captured)
        text = TextStream(self._text.decode, step.sampling.stop, self._text.special_tokens)
        sent = unpack(step.sent)
        recovered = "".join(map(text.push, sent))
        limit = min(step.sampling.max_tokens, self._engine.shape.max_context - usage.prompt_tokens)
        generated = len(sent)
        if (finished := self._finished(step, text, sent, limit)) is not None:
            usage.generated_tokens = generated
            yield Output(step.id, (), recovered + text.finish(), finished, usage)
            return
        if recovered:
            yield Output(step.id, (), recovered)
        request = self._request(step, sent, limit - generated)
        self._active.add(step.id)
        try:
            async with aclosing(self._engine.generate(request)) as pieces:
                async for piece in pieces:
                    tokens, new = self._read(piece, text)
                    generated += len(tokens)
                    finished = self._reason(piece, text)
                    logprobs = piece.logprobs[: len(tokens)]
                    if finished is None:
                        yield Output(step.id, tokens, new, logprobs=logprobs)
                        continue
                    usage.generated_tokens = generated
                    self._settle(usage, piece, captured, len(request.tokens))
                    yield Output(step.id, tokens, new + text.finish(), finished, usage, logprobs=logprobs)
                    return
        finally:
            self._active.discard(step.id)
        raise Unavailable("vLLM has ended a step without saying why")

    async def cancel(self, step_id: str) -> None:
        """Ends a step now; without effect if it has ended."""
        if step_id in self._active:
            await self._engine.abort(step_id)

    def _check(self, step: StepRequest) -> None:
        tokens, shape = count(step.prompt), self._engine.shape
        checks.not_empty("prompt", step.prompt)
        if tokens >= shape.max_context:
            raise InvalidArgument("prompt", f"has {tokens} tokens, and this worker takes at most {shape.max_context - 1}")
        for field, packed in (("prompt.token_ids", step.prompt), ("sent", step.sent)):
            check_ids(field, packed, shape.vocabulary)
        if len(self._active) >= self._config.max_running + self._config.max_waiting:
            raise ResourceExhausted(f"the worker's queue is full ({self._config.max_waiting} steps, engine.max_waiting)")

    def _request(self, step: StepRequest, sent: list[int], max_tokens: int) -> EngineRequest:
        shape = self._engine.shape
        transfer = {"pbkv": {"workflow": step.workflow, "agent": step.agent}} if shape.takes_hints else None
        return EngineRequest(
            id=step.id,
            tokens=unpack(step.prompt) + sent,
            sampling=vllm_sampling(step.sampling, max_tokens, self._text.ends),
            salt=step.namespace.salt,
            priority=step.priority if shape.by_priority else 0,
            transfer=transfer,
            hints=self._hints.envelope(step.workflow) if shape.takes_hints else None,
        )

    def _finished(self, step: StepRequest, text: TextStream, sent: list[int], limit: int) -> FinishReason | None:
        """How a step has ended already on the worker that was lost; None: it has not."""
        if text.stopped or (sent and sent[-1] in self._text.ends and not step.sampling.ignore_eos):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sent) >= limit else None

    def _read(self, piece: Piece, text: TextStream) -> tuple[tuple[int, ...], str]:
        """The tokens of a piece up to the one that completes a stop string, and their text."""
        tokens, new = list[int](), ""
        for token in piece.tokens:
            tokens.append(token)
            new += text.push(token)
            if text.stopped:
                break
        return tuple(tokens), new

    def _reason(self, piece: Piece, text: TextStream) -> FinishReason | None:
        if text.stopped:
            return FinishReason.STOP
        if not piece.finished:
            return None
        reason = _REASONS.get(piece.finished)
        if reason is None:
            raise Unavailable(f"vLLM has ended the step: {piece.finished}")
        return reason

    def _settle(self, usage: Usage, piece: Piece, captured: Mapping[Tier, int], submitted: int) -> None:
        cached = min(piece.cached_tokens, usage.prompt_tokens)
        usage.delivered = _by_tier(cached, captured) if self._engine.shape.takes_hints else _in(Tier.GPU, cached)
        usage.computed_tokens = submitted - piece.cached_tokens
        usage.preemptions = piece.preemptions
        if (times := piece.times) is not None:
            self._measure(usage, times)
        usage.settle()

    def _measure(self, usage: Usage, times: PhaseTimes) -> None:
        usage.queue_s = max(0.0, times.scheduled - times.queued)
        usage.prefill_s = max(0.0, times.first_token - times.scheduled)
        usage.decode_s = max(0.0, times.last_token - times.first_token)
        if usage.computed_tokens >= _MIN_PREFILL and usage.prefill_s:
            self.prefill_rate.add(usage.computed_tokens, usage.prefill_s)


def _in(tier: Tier, tokens: int) -> dict[Tier, int]:
    return {tier: tokens} if tokens else {}


def _by_tier(cached: int, captured: Mapping[Tier, int]) -> dict[Tier, int]:
    """Cached tokens by the tier that has delivered them. vLLM tells how many there were: those beyond what its own cache held
    when the step arrived have come through the connector.
    """
    own = min(cached, captured.get(Tier.GPU, 0))
    return _in(Tier.GPU, own) | _in(Tier.HOST, cached - own)
