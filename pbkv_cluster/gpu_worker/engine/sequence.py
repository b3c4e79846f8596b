"""A step in the engine: its request, and its sequence of tokens."""

from dataclasses import dataclass, field

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import TOKEN_BYTES, blocks_for, count, full_blocks
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.gpu_worker.engine.queue.step_queue import Rank
from pbkv_cluster.gpu_worker.engine.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One step of a workflow, ready to run."""

    id: str
    workflow: str
    agent: str
    step: int
    namespace: Namespace  # of the model and tenant; the sequence's length decides the rest
    prompt: bytes  # packed
    sampling: SamplingParams
    sent: bytes = b""  # packed; output of a worker that was lost, which the client has
    priority: int = 0
    graph: StepGraph | None = None  # declared for the workflow
    parent: int | None = None  # number of the step that this one follows; None: unknown, or it is the first


@dataclass(slots=True, eq=False)
class Sequence:
    """A running or waiting step. Times are readings of the engine's clock."""

    request: StepRequest
    arrival: int  # number of the request, counted by the engine
    arrived_at: float
    text: TextStream
    usage: Usage
    tokens: bytearray = field(default_factory=bytearray)  # prompt and output, packed
    prompt_tokens: int = 0
    total: int = 0  # tokens in `tokens`
    computed: int = 0  # tokens whose KV is in the pool
    handle: CacheHandle | None = None  # while it runs
    prefix_wait: "PrefixWait | None" = None  # the latest
    rank: Rank | None = None  # in the queue, once it has been there
    fetch_failed: bool = False  # blocks that were fetched for it have not arrived: what is not in the cache is computed
    continued: bool = False  # it is to be opened again, because the cache has more of it than it had: see `CacheHandle`
    charged: int = 0  # tokens to compute before its first output, that its tenant has been charged
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    logprobs: TokenLogprobs | None = None  # of its latest token, if they were asked for
    hidden: bytes = b""  # see `model/hidden_state.py`; empty: unknown

    def __post_init__(self) -> None:
        self.tokens = bytearray(self.request.prompt + self.request.sent)
        self.prompt_tokens = count(self.request.prompt)
        self.total = self.prompt_tokens + count(self.request.sent)

    @property
    def tenant(self) -> str:
        """Whose step it is; empty: the tenant without a name."""
        return self.request.namespace.salt

    @property
    def namespace(self) -> Namespace:
        """Of the blocks of a sequence of its length."""
        return self.request.namespace.of_length(self.total)

    @property
    def has_outgrown_namespace(self) -> bool:
        """Whether its latest token has taken it out of the namespace in which the ones before were computed."""
        return self.request.namespace.of_length(self.total - 1) != self.namespace

    @property
    def step(self) -> StepIdentity:
        """The step, as the cache knows it."""
        request = self.request
        return StepIdentity(
            self.namespace, request.workflow, request.agent, request.step, self.prompt_tokens, request.graph, request.parent
        )

    @property
    def is_prefilling(self) -> bool:
        """Whether it runs and has more than its next token to compute."""
        return self.handle is not None and self.total - self.computed > 1

    @property
    def blocks_missing(self) -> int:
        """Blocks that it still has to allocate for its tokens and the next one, once the prefix that it waits for is there."""
        wanted = blocks_for(self.total + 1)
        if self.handle is not None:
            return max(0, wanted - len(self.handle.table))
        return wanted - (0 if self.prefix_wait is None else full_blocks(self.prefix_wait.tokens))

    @property
    def generated(self) -> int:
        """Output tokens so far, including those of a worker that was lost."""
        return self.total - self.prompt_tokens

    @property
    def forced_token(self) -> int | None:
        """The next output token, where the request forces it."""
        forced = self.request.sampling.forced_output
        if forced is None:
            return None
        at = self.generated * TOKEN_BYTES
        return int.from_bytes(forced[at : at + TOKEN_BYTES], "little", signed=True)

    def note_delivered(self, handle: CacheHandle) -> None:
        """Notes what its handle has found."""
        usage, left = self.usage, self.prompt_tokens
        usage.delivered.clear()
        for tier, tokens in handle.delivered.items():
            usage.delivered[tier] = min(tokens, left)  # of the prompt only: a lost worker's output may be cached too
            left -= usage.delivered[tier]
        usage.prefetched_tokens = min(handle.prefetched_tokens, usage.delivered.get(Tier.GPU, 0))

    def note_more_delivered(self, handle: CacheHandle) -> None:
        """Notes what a later handle has found besides what the sequence had and has computed, all of which the GPU holds."""
        usage = self.usage
        left = max(0, self.prompt_tokens - sum(usage.delivered.values()) - usage.computed_tokens)
        for tier, tokens in handle.delivered.items():
            if tier is not Tier.GPU:
                usage.delivered[tier] = usage.delivered.get(tier, 0) + min(tokens, left)
                left -= min(tokens, left)

    def append(self, token: int) -> None:
        """Adds an output token."""
        self.tokens += token.to_bytes(TOKEN_BYTES, "little", signed=True)  # the same as `pack`, but faster
        self.total += 1


@dataclass(frozen=True, slots=True)
class PrefixWait:
    """A sequence waits until `source` has computed its first `tokens` tokens, but no longer than `until`."""

    source: Sequence
    tokens: int
    until: float  # on the engine's clock

    def is_over(self, now: float) -> bool:
        """Whether the prefix has been computed, is no longer being computed, or has taken too long."""
        return self.source.computed >= self.tokens or not self.source.is_prefilling or now >= self.until


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of one sequence, from position `start`, that go through the model together."""

    sequence: Sequence
    start: int
    count: int

    @property
    def final(self) -> bool:
        """Whether the sequence's next token follows from this chunk: it ends with the last token so far."""
        return self.start + self.count == self.sequence.total

    @property
    def ends_prompt(self) -> bool:
        """Whether it holds the prompt's last token. Output that a lost worker has sent may follow it."""
        return self.start < self.sequence.prompt_tokens <= self.start + self.count
