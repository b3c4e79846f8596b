"""What the worker's other parts expect of vLLM's engine, in our words."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.integrations.kv_hints import KvHintsEnvelope


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What an engine is, once it has started."""

    version: str
    dtype: str  # of the KV
    vocabulary: int
    max_context: int  # tokens of prompt and output together
    block_tokens: int
    gpu_blocks: int  # of these
    block_bytes: int  # of one of these; 0: not known
    by_priority: bool  # requests of higher priority go first
    takes_hints: bool  # a KV connector may read `kv_hints` and `kv_transfer_params`


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request for vLLM."""

    id: str
    tokens: list[int]
    sampling: Mapping[str, Any]  # arguments of vLLM's `SamplingParams`
    salt: str  # the tenant, whose blocks nobody else finds; empty: nobody's
    priority: int = 0  # higher goes first
    transfer: Mapping[str, Any] | None = None  # `kv_transfer_params`
    hints: KvHintsEnvelope | None = None


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """Readings of vLLM's clock, in seconds, so far."""

    queued: float
    scheduled: float
    first_token: float
    last_token: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What vLLM has generated for a request since its last piece."""

    tokens: Sequence[int]
    cached_tokens: int  # of the prompt
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, if they were asked for
    finished: str = ""  # vLLM's reason: stop, length, abort, error, ...; empty: it goes on
    times: PhaseTimes | None = None  # None: not known
    preemptions: int = 0  # so far


@dataclass(slots=True)
class EngineLoad:
    """What the scheduler has told last, which is after a batch."""

    running: int = 0
    batches: int = 0


class EngineContract(Protocol):
    """vLLM's engine."""

    @property
    def shape(self) -> EngineShape: ...

    @property
    def load(self) -> EngineLoad: ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """Runs a request. Closing the generator early aborts it.

        Raises:
            InvalidArgument: vLLM refuses the request.
            Unavailable: the engine has ended, or has failed at this request.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Ends a request; without effect if it has ended."""
        ...

    async def clear(self) -> bool:
        """Empties the prefix cache, and no tier of a KV connector; false if requests use it."""
        ...
