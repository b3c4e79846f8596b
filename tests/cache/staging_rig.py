"""A cache that stages, and a bus on which that takes a while."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.prefetch.planner import QueuedPrompt
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount, PrefetchSource
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import LateEngine
from tests.cache.test_fetches import Others
from tests.cache.test_leases import TEXT, space, text

BLOCK_S = 0.01
QUEUE, FORECAST, REQUEST = PrefetchSource.QUEUE, PrefetchSource.FORECAST, PrefetchSource.REQUEST


class Bus(LateEngine):
    """Copies nothing, and says that each block takes a while. A transfer is done when the bus catches up."""

    labelled = True
    lost = False  # what comes from elsewhere does not arrive
    queue_s = 0.0  # until what is on its way from elsewhere has arrived
    disk_s = 0.0  # likewise of the disk
    is_slow = False  # nothing is done within the time that a wait is limited to

    def _copy(self, transfer: Transfer) -> None:
        transfer.failed = transfer.target_slots if self.lost and transfer.patience_s is not None else transfer.failed

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        if timeout_s is None or not self.is_slow:
            super().wait(transfers, timeout_s)

    def end(self, transfer: Transfer) -> None:
        """Completes one transfer."""
        self._complete(transfer)

    def completed(self) -> list[Transfer]:
        done, self._completed = self._completed, []
        return done

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return BLOCK_S * blocks + {Tier.REMOTE: self.queue_s, Tier.DISK: self.disk_s}.get(source, 0.0)


class Peer(Others):
    """Another node has everything."""

    asked = 0  # times

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        self.asked += 1
        return [Tier.REMOTE for _ in keys]

    def is_near(self, key: bytes) -> bool:
        return False


class Rig:
    """A cache of 12 GPU blocks. A workflow has a text of 4 blocks, of one agent, `a-NAME`; to compute it takes `compute_s`."""

    def __init__(
        self,
        host: int = 8,
        disk: int = 0,
        elsewhere: Elsewhere = NOWHERE,
        compute_s: float = 9.0,
        guard: bool = False,
        prefetch: Literal["none", "queue"] = "none",
        policy: str = "pbkv-paper",
    ) -> None:
        self.clock, self.bus, self.compute_s = ManualClock(), Bus(0), compute_s
        config = CacheConfig(policy=policy, guard=guard, stage=True, prefetch=prefetch)
        capacity = {Tier.GPU: 12, Tier.HOST: host} | ({Tier.DISK: disk} if disk else {})
        self.cache = make_cache(
            capacity,
            config,
            self.bus,
            self.clock,
            compute_seconds=lambda tokens: self.compute_s * tokens / (TEXT * BLOCK_TOKENS),
            elsewhere=elsewhere,
        )
        self.bus.watch(self.cache.tiers.pools)
        self.steps = self.epoch = 0

    def run(self, name: str, blocks: int = TEXT, workflow: str = "") -> Mapping[Tier, int]:
        """Runs a step, of the workflow that is called like its text if no other is named. Returns the tokens that tiers had."""
        workflow = workflow or name
        self.clock.advance(1.0)
        self.steps += 1
        tokens = text(name, blocks)
        handle = self.cache.open(StepIdentity(space(), workflow, f"a-{workflow}", self.steps, count(tokens)), tokens)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.cache.close(handle)
        self.settle()
        return handle.delivered

    def run_and_end(self, names: str) -> None:
        """Runs a step of each workflow, and then ends all of them."""
        for name in names:
            self.run(name)
        for name in names:
            self.cache.retire(name)

    def settle(self) -> None:
        self.bus.catch_up()
        self.cache.poll()
        self.cache.check_integrity()

    def ahead(self, *queued: str, seconds: float = 1.0, blocks: int = TEXT) -> int:
        """Returns the blocks that are staged meanwhile."""
        before = self.staged
        self.clock.advance(10.0)
        self.cache.prefetcher.run(seconds, [QueuedPrompt(space(), text(name, blocks)) for name in queued])
        return self.staged - before

    def forecast(self, name: str, probability: float) -> None:
        self.epoch += 1
        steps = (StepForecast({f"a-{name}": probability}, 1.0),)
        self.cache.apply(Forecast(name, self.epoch, 0.0, steps))

    @property
    def staged(self) -> int:
        return sum(self.count(each).loaded for each in PrefetchSource)

    def count(self, reason: PrefetchSource) -> PrefetchCount:
        return self.cache.tiers.prefetched.staging.count(reason)

    def tiers(self, name: str) -> Mapping[Tier, int]:
        """The blocks of a text, by the fastest tier that has each."""
        return {tier: tokens // BLOCK_TOKENS for tier, tokens in self.cache.captured(space(), text(name)).items()}
