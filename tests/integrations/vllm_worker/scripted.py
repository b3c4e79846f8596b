"""An engine that keeps the contract of vLLM's without vLLM, and a worker around it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineLoad, EngineRequest, EngineShape, PhaseTimes, Piece
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.integrations.vllm_worker.hints import HintBook
from pbkv_cluster.integrations.vllm_worker.steps import StepRunner, TextRules
from pbkv_cluster.store.kv_events.messages import BlockStored, extra_of

SHAPE = EngineShape(
    version="0.32.0",
    dtype="float32",
    vocabulary=1000,
    max_context=512,
    block_tokens=32,
    gpu_blocks=64,
    block_bytes=4096,
    by_priority=False,
    takes_hints=True,
)
NAMESPACE = Namespace("model", "revision", "float32", "vllm")
END = 999


class ScriptedEngine:
    """Generates the tokens that it is told to, one for each piece; a request of more is cut at its `max_tokens`."""

    def __init__(self, tokens: Sequence[int] = tuple(range(97, 123)), shape: EngineShape = SHAPE, cached: int = 0) -> None:
        self.shape = shape
        self.load = EngineLoad()
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.closed: list[str] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.clears = True
        self.ends_with = ""  # instead of what ends a request as a rule
        self._tokens = tokens
        self._cached = cached

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        most = request.sampling["max_tokens"]
        told = request.sampling["logprobs"]
        tokens = self._tokens[:most]
        try:
            for number, token in enumerate(tokens, 1):
                self.load.running, self.load.batches = 1, self.load.batches + 1
                is_last = number == len(tokens) or token in request.sampling["stop_token_ids"]
                reason = "stop" if token in request.sampling["stop_token_ids"] else "length"
                yield Piece(
                    tokens=[token],
                    cached_tokens=self._cached,
                    logprobs=() if told is None else (TokenLogprobs(-0.5, ((token, -0.5),)),),
                    finished=(self.ends_with or reason) if is_last else "",
                    times=PhaseTimes(1.0, 1.5, 2.5, 2.5 + 0.25 * (number - 1)),
                    preemptions=2,
                )
                if is_last:
                    return
                await self.may_go_on.wait()
        finally:
            self.closed.append(request.id)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def clear(self) -> bool:
        return self.clears


def letters(ids: Sequence[int]) -> str:
    """A tokenizer of one letter for each token, without the special one."""
    return "".join(map(chr, ids))


class Rig:
    """A step runner on a scripted engine."""

    def __init__(self, engine: ScriptedEngine, config: EngineConfig | None = None) -> None:
        self.engine = engine
        self.changes: list[tuple[bytes, Residency]] = []
        self.held = HeldBlocks(NAMESPACE, lambda label, residency: self.changes.append((label.key, residency)))
        self.hints = HintBook(HintMaker(), ManualClock(), 16)
        text = TextRules(letters, {END: "<end>"}, frozenset({END}))
        self.steps = StepRunner(engine, self.held, self.hints, text, config or EngineConfig(), "worker-0")


def stored(
    tokens: Sequence[int], keys: Sequence[bytes], parent: bytes | None = None, medium: str = "GPU", salt: str = ""
) -> BlockStored:
    """An event of full blocks of 32 tokens, which says of each whose it is."""
    extra = [extra_of([salt] if salt and parent is None else []), *[b""] * (len(keys) - 1)]
    return BlockStored(list(keys), parent, list(tokens), 32, medium, extra)
