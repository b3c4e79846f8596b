"""How large a cache has to be: capacities named by what LRU makes of them, so that workloads can be compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup, SimulationResult, simulate
from pbkv_cluster.simulator.workload.token_source import TokenSource

TOLERANCE = 0.01  # of the share
_MOST_RUNS = 12  # for one pressure
_EDGE = 0.15  # an interpolated guess keeps this share of the bracket from its ends


@dataclass(frozen=True, slots=True)
class Capacity:
    """Where LRU gets a share of what an infinite cache would hit."""

    blocks: int
    share: float  # measured
    lru: SimulationResult


class PressureScale:
    """Capacities of one workload. The host tier plays no part: pressure is that on the GPU's blocks."""

    def __init__(self, tokens: TokenSource, setup: Setup, on_run: Callable[[], None] = lambda: None) -> None:
        """Runs the infinite cache once.

        Args:
            tokens: the workload.
            setup: everything but capacities and policy.
            on_run: called after each run.
        """
        self._tokens = tokens
        self._setup = replace(setup, host_blocks=0, policy="lru", adversary=False, noise=0.0)
        self._on_run = on_run
        self._runs: dict[int, Capacity] = {}
        largest, different = tokens.blocks()
        self.least = max(8, largest + 1)  # blocks; a step must fit
        # Every sequence that runs has blocks of its own beside those that are cached.
        self.most = different + largest * min(len(tokens.workload.arrivals), setup.engine.max_running) + 1
        self.infinite = self._simulate(self.most)

    def find(self, share: float) -> Capacity:
        """The capacity at which LRU's GPU hit rate is `share` of the infinite cache's, within one percent of the latter.

        By bisection on the logarithm of the capacity, the halves weighed by interpolation. Where even the least capacity gives
        more, or a block more or less jumps over the share, the nearest capacity is returned; `Capacity.share` tells.

        Raises:
            InvalidArgument: the share is not between 0 and 1, or an infinite cache hits nothing.
        """
        if not 0 < share < 1:
            raise InvalidArgument("pressure", f"must be above 0 and below 1, got {share}")
        if self.infinite.hit_gpu == 0:
            raise InvalidArgument("pressure", "means nothing here: even an infinite cache hits no token of this workload")
        low = self._at(self.least)
        if low.share >= share:
            return low
        for _ in range(_MOST_RUNS):
            known = sorted(self._runs.values(), key=lambda run: run.blocks)
            high = next((run for run in known if run.share >= share), None)
            below = [run for run in known if run.share < share and (high is None or run.blocks < high.blocks)]
            low = below[-1]
            top, top_share = (high.blocks, high.share) if high else (self.most, 1.0)
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
            self._runs[blocks] = Capacity(blocks, run.hit_gpu / self.infinite.hit_gpu, run)
        return self._runs[blocks]

    def _simulate(self, blocks: int) -> SimulationResult:
        result = simulate(self._tokens, replace(self._setup, gpu_blocks=blocks))
        self._on_run()
        return result
