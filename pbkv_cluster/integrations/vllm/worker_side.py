"""The connector in a worker: loads in the background, copies of new blocks at the end of a step, and what came of them."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace

import torch

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.engine_store import EngineStore, StoreSettings
from pbkv_cluster.integrations.vllm.block_layout import BlockLayout
from pbkv_cluster.integrations.vllm.messages import LoadPlan, SavePlan, StepPlan, WorkerIntroduction, WorkerReport

log = logging.getLogger(__name__)

_IDLE_S = 0.005  # that a step with nothing to compute waits for a load, instead of asking again and again


@dataclass(slots=True)
class _Load:
    plan: LoadPlan
    future: "Future[list[bool]]"
    began: float


class WorkerSide:
    """Belongs to the worker's thread."""

    def __init__(self, settings: StoreSettings, name: Callable[[str], Namespace], reports: bool) -> None:
        """Args:
        settings: of the store.
        name: the namespace of this worker's blocks, from the description of their layout.
        reports: whether this worker tells the scheduler of the blocks that come and go.
        """
        self._settings = settings
        self._name = name
        self._reports = reports
        self.layout: BlockLayout | None = None
        self.store: EngineStore | None = None
        self._plan = StepPlan()
        self._loads: dict[str, _Load] = {}
        self._failed_blocks: set[int] = set()
        self._counted: Counter[str] = Counter()  # of the store's counts, what has been told
        self._load_seconds: list[float] = []
        self._save_seconds: list[float] = []

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor], blocks: int) -> None:
        """The KV cache has its layout: now there can be a store for its blocks.

        Raises:
            Refused: the layout is one that the connector does not know.
        """
        self.shutdown()  # of an earlier cache
        self.layout = BlockLayout(kv_caches, blocks)
        namespace = self._name(self.layout.description)
        self.store = EngineStore(self._settings, namespace, self.layout.block_bytes)
        log.info("blocks of %d bytes in namespace %s", self.layout.block_bytes, namespace)

    def get_handshake_metadata(self) -> WorkerIntroduction | None:
        """What the scheduler must know; None: there is no KV cache yet."""
        if self.store is None:
            return None
        return WorkerIntroduction(self.store.namespace, self.store.block_bytes)

    # --- a step, in the order of vLLM's calls ---

    def bind(self, plan: StepPlan) -> None:
        """The plan of the step."""
        self._plan = plan
        if plan.clear and self.store is not None:
            self.store.clear()

    def start_load_kv(self) -> None:
        """Starts the loads of this step; nobody waits for them but the requests that they belong to."""
        store, layout = self.store, self.layout
        if store is None or layout is None:
            return
        for plan in self._plan.loads:
            ids = plan.block_ids
            future = store.load(plan.keys, lambda number, payload, ids=ids: layout.write(ids[number], payload))  # type: ignore[misc]
            self._loads[plan.request_id] = _Load(plan, future, time.monotonic())
        self._plan = replace(self._plan, loads=[])

    def wait_for_save(self) -> None:
        """Copies the step's new blocks to the store. They may be overwritten afterwards, so nothing need be held for them."""
        store, layout = self.store, self.layout
        if store is None or layout is None or not self._plan.saves:
            return
        began = time.monotonic()
        saved = sum(_save(store, layout, plan) for plan in self._plan.saves)
        self._plan = replace(self._plan, saves=[])
        if saved:
            self._save_seconds.append(time.monotonic() - began)

    def get_finished(self) -> set[str]:
        """The requests whose loads have ended since the last call, well or not."""
        if self._loads and not self._plan.computes:
            wait([load.future for load in self._loads.values()], _IDLE_S, FIRST_COMPLETED)
        ended = {request_id: load for request_id, load in self._loads.items() if load.future.done()}
        for request_id, load in ended.items():
            del self._loads[request_id]
            self._load_seconds.append(time.monotonic() - load.began)
            loaded = load.future.result()
            self._failed_blocks |= {block for block, good in zip(load.plan.block_ids, loaded, strict=True) if not good}
        return set(ended)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The blocks of these requests that must be computed."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_report(self) -> WorkerReport | None:
        """What has come to the region and left it; None if nothing has, or nobody asks."""
        if self.store is None or not self._reports:
            return None
        changes = [(change.key, change.is_stored) for change in self.store.take_changes()]
        return WorkerReport(changes) if changes else None

    def take_stats(self) -> dict[str, object] | None:
        """Figures since the last call, see `stats`; None if nothing has happened."""
        store = self.store
        if store is None:
            return None
        region = store.region
        now = Counter(store.counts)
        now["evicted"] = 0 if region is None else region.evicted
        blocks = {outcome: count - self._counted[outcome] for outcome, count in now.items() if count != self._counted[outcome]}
        if not (blocks or self._load_seconds or self._save_seconds):
            return None
        self._counted = now
        loads, self._load_seconds = self._load_seconds, []
        saves, self._save_seconds = self._save_seconds, []
        return {
            "blocks": blocks,
            "block_bytes": store.block_bytes,
            "load_seconds": loads,
            "save_seconds": saves,
            "held_blocks": 0 if region is None else len(region),
        }

    def shutdown(self) -> None:
        """Ends the store of this process; its blocks stay."""
        if self.store is not None:
            self.store.close()
            self.store = None


def _save(store: EngineStore, layout: BlockLayout, plan: SavePlan) -> int:
    """Copies the blocks that the store lacks. Returns how many."""
    begun = [
        (block_id, write)
        for block_id, write in zip(plan.block_ids, store.begin(plan.keys, plan.parent), strict=True)
        if write is not None
    ]
    if not begun:
        return 0
    writes = [write for _, write in begun]
    try:
        layout.read([block_id for block_id, _ in begun], [write.payload for write in writes])
    except BaseException:
        store.abandon(writes)
        raise
    store.commit(writes)
    return len(writes)
