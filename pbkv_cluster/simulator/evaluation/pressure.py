"""Finds cache capacities by pressure: the share of an infinite cache's hits that LRU gets. So workloads can be compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.workload.token_source import TokenSource

TOLERANCE = 0.01  # of the share
_RUNS_MAX = 12  # for one pressure
_EDGE = 0.15  # share of the bracket that an interpolated guess stays away from its ends


@dataclass(frozen=True, slots=True)
class Capacity:
    """A GPU capacity, and the share of an infinite cache's hits that LRU was measured to get with it."""

    blocks: int  # on the GPU
    share: float
    lru: SimulationResult


class PressureScale:
    """Capacities of one workload. Pressure is that on the GPU's blocks, unless there are some in host memory for each of them:
    then it is that on both tiers.
    """

    def __init__(
        self, tokens: TokenSource, setup: Setup, on_run: Callable[[], None] = lambda: None, host_ratio: float = 0.0
    ) -> None:
        """Runs the infinite cache once.

        Args:
            tokens: the workload.
            setup: everything else; its capacities and policies are ignored.
            on_run: called after each run.
            host_ratio: host blocks for each on the GPU.
        """
        self._tokens = tokens
        cache = setup.cache.model_copy(update={"host_policy": "lru"})
        self._setup = replace(setup, policy="lru", cache=cache, adversary=False, noise=0.0)
        self._host_ratio = host_ratio
        self._on_run = on_run
        self._runs: dict[int, Capacity] = {}
        largest, different = tokens.blocks()
        self.blocks_min = max(8, largest + 1)  # the largest step must fit
        # Beside the cached blocks, every running sequence has blocks of its own.
        self.blocks_max = different + largest * min(len(tokens.workload.arrivals), setup.engine.max_running) + 1
        self.infinite = self._simulate(self.blocks_max)

    def find(self, share: float) -> Capacity:
        """The capacity at which LRU's hit rate is `share` of the infinite cache's, within one percent of the latter.

        Found by bisection on the logarithm of the capacity, at an interpolated point instead of the middle. If even the
        smallest capacity gives more, or one block more or less passes over the share, the nearest capacity is returned; see
        its `share`.

        Raises:
            InvalidArgument: the share is not between 0 and 1, or an infinite cache hits nothing.
        """
        if not 0 < share < 1:
            raise InvalidArgument("pressure", f"must be above 0 and below 1, got {share}")
        if self.infinite.hit_any == 0:
            raise InvalidArgument("pressure", "means nothing here: even an infinite cache hits no token of this workload")
        low = self._at(self.blocks_min)
        if low.share >= share:
            return low
        for _ in range(_RUNS_MAX):
            known = sorted(self._runs.values(), key=lambda run: run.blocks)
            high = next((run for run in known if run.share >= share), None)
            below = [run for run in known if run.share < share and (high is None or run.blocks < high.blocks)]
            low = below[-1]
            top, top_share = (high.blocks, high.share) if high else (self.blocks_max, 1.0)
            best = min(known, key=lambda run: abs(run.share - share))
            if abs(best.share - share) <= TOLERANCE or top - low.blocks <= 1:
                return best
            at = min(max((share - low.share) / (top_share - low.share), _EDGE), 1 - _EDGE)
            guess = round(math.exp((1 - at) * math.log(low.blocks) + at * math.log(top)))
            self._at(min(max(guess, low.blocks + 1), top - 1))
        return min(self._runs.values(), key=lambda run: abs(run.share - share))

    def _at(self, blocks: int) -> Capacity:
        if blocks not in self._runs:
            run = self._simulate(blocks)
            self._runs[blocks] = Capacity(blocks, run.hit_any / self.infinite.hit_any, run)
        return self._runs[blocks]

    def _simulate(self, blocks: int) -> SimulationResult:
        host_blocks = round(self._host_ratio * blocks)
        result = simulate(self._tokens, replace(self._setup, gpu_blocks=blocks, host_blocks=host_blocks))
        self._on_run()
        return result
