"""One simulated worker: its engine and cache in a time of its own, and what the gateway knows of it."""

import math

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.speeds import LoadingCost, StepSpeed
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.runner import SimulatedRunner
from pbkv_cluster.simulator.engine.setup import Setup
from pbkv_cluster.simulator.policies.adversary import adversary_of
from pbkv_cluster.store.block_map import WorkerKey

_UNBOUNDED = 1 << 30  # steps in the queue: the simulation never refuses a client


class SimulatedWorker:
    """A GPU with its engine. A busy worker's clock is never before the cluster's: it has run its batches up to then, and the
    last of them may end later.
    """

    def __init__(self, number: int, setup: Setup, begun: set[str]) -> None:
        """Args:
            number: from 0.
            setup: of the simulation.
            begun: ids of the steps that have been in a batch on any worker; steps that begin here are added.

        Raises:
            InvalidArgument: an unknown policy.
            FailedPrecondition: the policy is the oracle, and nobody has told it the future.
        """
        self.number = number
        self.id = f"gpu-{number}"
        self.clock = ManualClock()
        self.steps = WorkerLoad()
        self.speed = StepSpeed()
        self.loading = LoadingCost(self.clock)
        self.memory_tokens = (setup.gpu_blocks + setup.host_blocks) * BLOCK_TOKENS
        name = adversary_of(setup.policy) if setup.adversary else setup.policy
        cache = setup.cache.model_copy(update={"policy": name})
        if setup.policy == "oracle":  # in all tiers, and itself: others are measured against it
            cache = cache.model_copy(update={"host_policy": name, "guard": False, "prefetch": "none"})
        self.engine = SimulatedEngine(
            SimulatedRunner(setup.gpu_blocks, setup.host_blocks, setup.cost, self.clock, begun, setup.disk_blocks),
            setup.engine.model_copy(update={"allow_forced_output": True, "max_waiting": _UNBOUNDED}),
            cache,
            self.clock,
        )

    @property
    def key(self) -> WorkerKey:
        """It never restarts."""
        return self.id, ""

    @property
    def cache(self) -> KVCache:
        return self.engine.cache

    def idle_until(self, time: float) -> None:
        """Lets an idle worker's clock catch up with the cluster's. Meanwhile it prefetches, as in service."""
        engine = self.engine
        while not engine.busy and (seconds := engine.idle_s) is not None and self.clock.now() + seconds < time:
            self.clock.advance(seconds)
            engine.run_idle()
        if self.clock.now() < time:
            self.clock.advance_to(time)

    def advance(self, until: float) -> list[Output]:
        """Runs at least one batch, and decodes until the clock reads `until`; see `SimulatedEngine.advance`."""
        return self.engine.advance(max(until, math.nextafter(self.clock.now(), math.inf)))
