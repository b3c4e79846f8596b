"""The connector in vLLM's scheduler: which blocks are loaded, and which are stored, in which step. It moves no bytes."""

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.engine_store import EngineStore
from pbkv_cluster.integrations.vllm.adapters import AdapterDigests
from pbkv_cluster.integrations.vllm.block_events import BlockEvents
from pbkv_cluster.integrations.vllm.messages import LoadPlan, SavePlan, StepPlan, WorkerIntroduction
from pbkv_cluster.integrations.vllm.options import ConnectorOptions, Refused
from pbkv_cluster.integrations.vllm.request_keys import ExtraKeys, Request, RequestKeys

log = logging.getLogger(__name__)

_EPOCH_BYTES = 16


class BlockState(Protocol):
    """vLLM's `KVConnectorBlockState`."""

    def get_block_ids(self, req_id: str) -> tuple[list[int], ...] | None: ...


class SchedulerOutput(Protocol):
    """What of vLLM's `SchedulerOutput` is read."""

    num_scheduled_tokens: Mapping[str, int]
    total_num_scheduled_tokens: int
    kv_connector_block_state: BlockState | None


class Blocks(Protocol):
    """What of vLLM's `KVCacheBlocks` is read."""

    def get_block_ids(self) -> tuple[list[int], ...]: ...


@dataclass(slots=True)
class _Known:
    """A request that has not finished."""

    request: Request
    keys: RequestKeys
    is_shared: bool  # false: its KV cannot be told from others; it neither loads nor stores
    found_after: int = 0  # blocks that vLLM had itself when the store was asked last
    stored: int = 0  # first blocks that have been offered to the store
    loading: frozenset[int] = field(default=frozenset())  # blocks of vLLM's pool that are being loaded
    load_failed: bool = False  # it computes from then on


class SchedulerSide:
    """Belongs to the scheduler's thread. Until the workers have introduced themselves, nothing is found or stored."""

    def __init__(
        self,
        options: ConnectorOptions,
        block_tokens: int,
        extra_keys: ExtraKeys,
        events: BlockEvents | None,
        loads: bool = True,
        saves: bool = True,
    ) -> None:
        """Args:
        options: of the connector.
        block_tokens: of vLLM's blocks.
        extra_keys: vLLM's function, see `RequestKeys`.
        events: for vLLM's KV events; None: they are off.
        loads: whether this engine takes blocks from the store.
        saves: whether it puts any there.
        """
        self._options = options
        self._may_load, self._may_save = loads, saves
        self._block_tokens = block_tokens
        self._extra_keys = extra_keys
        self._events = events
        self._ranks: list[Namespace] = []
        self._store: EngineStore | None = None
        self._known: dict[str, _Known] = {}
        self._loads: list[LoadPlan] = []
        self._clear = False
        self._adapters = AdapterDigests()
        self._epoch = b""  # of the weights: those of the start have none, and all engines that began with them agree

    def meet(self, workers: Mapping[tuple[int, int], WorkerIntroduction]) -> None:
        """The workers, by pipeline and tensor rank. From now on, what all of them can read is found.

        Raises:
            Refused: their blocks differ in more than the rank.
        """
        self._ranks = [worker.namespace for worker in workers.values()]
        sizes = {worker.block_bytes for worker in workers.values()}
        # TP ranks are alike; pipeline stages may have another number of layers.
        if len(sizes) > 1 or len({_kind(rank) for rank in self._ranks}) > 1:
            raise Refused(f"the KV of a block has another layout in some ranks than in others ({sorted(sizes)} bytes)")
        self._store = EngineStore(self._options.store, self._ranks[0], sizes.pop(), reads_only=True)

    # --- vLLM's hooks, by their names ---

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens that can be loaded after those that vLLM has; they are loaded while other requests run."""
        known = self._of(request)
        first = known.found_after = num_computed_tokens // self._block_tokens
        if self._store is None or known.load_failed or not (self._may_load and known.is_shared):
            return 0, False
        # The last token is always computed: its output is wanted.
        keys = known.keys.first((request.num_tokens - 1) // self._block_tokens)[first:]
        tokens = self._store.leading(keys, self._ranks) * self._block_tokens
        return (tokens, True) if tokens and tokens >= self._options.min_load_tokens else (0, False)

    def update_state_after_alloc(self, request: Request, blocks: Blocks, num_external_tokens: int) -> None:
        """The blocks that take what is loaded have been reserved."""
        if not num_external_tokens:
            return
        known = self._of(request)
        first, end = known.found_after, known.found_after + num_external_tokens // self._block_tokens
        (block_ids,) = blocks.get_block_ids()
        keys = known.keys.first(end)
        known.loading = frozenset(block_ids[first:end])
        self._loads.append(LoadPlan(request.request_id, tuple(keys[first:end]), tuple(block_ids[first:end])))

    def build_connector_meta(self, output: SchedulerOutput) -> StepPlan:
        """The plan of this step."""
        plan = StepPlan(self._loads, [], output.total_num_scheduled_tokens > 0, self._clear)
        self._loads, self._clear = [], False
        if self._store is None or output.kv_connector_block_state is None or not self._may_save:
            return plan
        for request_id, tokens in output.num_scheduled_tokens.items():
            known = self._known.get(request_id)
            if known is None or not known.is_shared:
                continue
            blocks = self._full_blocks(known.request, tokens)
            if blocks > known.stored:
                found = output.kv_connector_block_state.get_block_ids(request_id)
                if found is not None:
                    plan.saves.append(self._save(known, blocks, found[0]))
        return plan

    def update_connector_output(self, output: Any) -> None:
        """What the workers have reported after a step: `KVConnectorOutput`."""
        report = output.kv_connector_worker_meta
        if report is not None and self._events is not None:
            self._events.changed(report.changes)
        failed: set[int] = output.invalid_block_ids or set()
        if failed:  # a rank tells it when its own load has ended, and vLLM that the request's has once those of all ranks have
            for known in self._known.values():
                known.load_failed = known.load_failed or not failed.isdisjoint(known.loading)
        for request_id in output.finished_recving or ():
            finished = self._known.get(request_id)
            if finished is not None:
                finished.loading = frozenset()

    def request_finished(self, request: Request) -> None:
        """A request has ended, in whatever way. What has been planned for it goes on by itself."""
        self._known.pop(request.request_id, None)

    def reset_cache(self) -> bool:
        """The next step drops all blocks of this engine's regions, and the keys of all further requests are others.

        vLLM asks for it when the weights have been replaced, of which the namespace knows nothing: no block from before is
        found any more, neither an own one nor another engine's, and no other engine finds a new one. Requests that run now,
        on KV of both weights, store nothing more, unless they are preempted and begin anew.
        """
        self._clear = True
        self._epoch = secrets.token_bytes(_EPOCH_BYTES)
        self._known.clear()
        return True

    def take_events(self) -> Iterable[object]:
        """vLLM's KV events since the last call."""
        return self._events.take() if self._events is not None else ()

    def shutdown(self) -> None:
        """Ends the view of the node's store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- inside ---

    def _of(self, request: Request) -> _Known:
        known = self._known.get(request.request_id)
        if known is None:
            lora = request.lora_request
            adapter = b"" if lora is None else self._adapters.of(lora.lora_path)
            keys = RequestKeys(request, self._block_tokens, self._extra_keys, self._epoch + (adapter or b""))
            known = self._known[request.request_id] = _Known(request, keys, is_shared=adapter is not None)
        return known

    def _full_blocks(self, request: Request, scheduled: int) -> int:
        """Blocks whose KV is complete, and whose tokens are known, once `scheduled` more tokens have been computed."""
        tokens = min(request.num_computed_tokens + scheduled, request.num_tokens)
        if not self._options.save_outputs:
            tokens = min(tokens, request.num_prompt_tokens)
        return tokens // self._block_tokens

    def _save(self, known: _Known, blocks: int, block_ids: Sequence[int]) -> SavePlan:
        first, known.stored = known.stored, blocks
        keys = known.keys.first(blocks)
        if self._events is not None:
            self._events.planned(known.request, first, keys[first:])
        return SavePlan(tuple(keys[first:]), keys[first - 1] if first else None, tuple(block_ids[first:blocks]))


def _kind(namespace: Namespace) -> tuple[str, ...]:
    return namespace.model, namespace.revision, namespace.dtype, namespace.layout
