"""Does a workload lose by the company of others? Several run together, and then each of them alone.

Alone are the same workflows, with the same pauses, which start when they did beside the others under LRU. The cache is of a
size at which LRU hits as many of their tokens as it does when all run together, with as many host blocks for each on the GPU:
the memory that LRU lets them have there. Compared is what policy `pbkv` makes of that memory, over LRU in the same run. So
neither the size of the cache nor how hard a workload is to cache changes the figure.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.prior.scene import CONCURRENCY, LRU, OURS, PRESSURE, THINK_SCALE
from benchmarks.report import Figure
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.pressure import PressureScale
from pbkv_cluster.simulator.evaluation.row import on_target
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, Workload, make_workload

_LOSS = 1.02  # by which a workload may have more alone than together, at most
_SHARE_MAX = 0.99  # of an infinite cache's hits: LRU can have them all, at many capacities


class _Run(NamedTuple):
    """Which tokens are counted: those of one workload in runs of one kind, of all seeds."""

    workload: str
    alone: bool
    policy: str
    host_ratio: float


class Tally:
    """The tokens of each workload, together with the others and alone."""

    def __init__(self) -> None:
        self._hits = Counter[_Run]()
        self._recomputed = Counter[_Run]()
        # By workload and host ratio, LRU's shares of an infinite cache's hits together and alone, where these differ.
        self._unmatched = dict[tuple[str, float], tuple[float, float]]()

    def add(self, traces: Sequence[Trace], ratios: Sequence[float], seed: int, workflows: int, drift: bool) -> None:
        """Runs the workloads with one seed.

        Args:
            traces: one for each workload.
            ratios: host blocks for each on the GPU.
            seed: of the workload.
            workflows: of all workloads together.
            drift: the second half of the traces prevails in the second half of the workload, the first half before.
        """
        tokens = TokenSource(make_workload(traces, Mix(workflows, CONCURRENCY, THINK_SCALE, drift), seed))
        scale = PressureScale(tokens, Setup(0))
        blocks = scale.find(PRESSURE).blocks
        infinite = _hits(tokens.workload, scale.infinite)
        for ratio in ratios:
            lru = self._run(tokens, blocks, ratio, seed, alone=False)
            together = _hits(tokens.workload, lru)
            for name in sorted(name for name, hits in together.items() if hits):
                own = TokenSource(_own(tokens.workload, name, lru))
                share = min(together[name] / infinite[name], _SHARE_MAX)
                found = PressureScale(own, Setup(0), host_ratio=ratio).find(share)
                if not on_target(share, found.share):
                    self._unmatched[name, ratio] = share, found.share
                self._run(own, found.blocks, ratio, seed, alone=True)

    def _run(self, tokens: TokenSource, blocks: int, ratio: float, seed: int, alone: bool) -> SimulationResult:
        """Runs both policies, and counts. Returns LRU's run."""
        setup = Setup(blocks, round(ratio * blocks), seed=seed)
        lru, ours = (simulate(tokens, replace(setup, policy=cache.policy, cache=cache)) for cache in (LRU, OURS))
        for policy, result in ((LRU.policy, lru), (OURS.policy, ours)):
            for record in result.steps:
                run = _Run(_workload(tokens.workload, record.arrival), alone, policy, ratio)
                self._hits[run] += record.available_tokens - record.recomputed_tokens
                self._recomputed[run] += record.recomputed_tokens
        return lru

    def figures(self, what: str) -> Iterator[Figure]:
        """For each workload, what it has together with the others, and how much more it has alone."""
        for workload, ratio in self._cases():
            together, alone = (self._over_lru(self._hits, workload, which, ratio) for which in (False, True))
            name = f"{workload} in {what}, host ratio {ratio:g}"
            yield Figure(f"{name}: hits in any tier over LRU's", together, "x")
            name += ": the same alone, over that"
            unmatched = self._unmatched.get((workload, ratio))
            if unmatched:  # its longest step needs more memory than it has together, so there is no goal
                name += " (LRU gets {:.0%} of an infinite cache's hits, alone {:.0%})".format(*unmatched)
            loss = alone / together if together else math.inf
            yield Figure(name, loss, "x", at_most=None if unmatched else _LOSS)

    def details(self, what: str) -> Iterator[Figure]:
        """What both figures are made of, and likewise recomputed tokens."""
        for workload, ratio in self._cases():
            for alone in (False, True):
                name = f"{workload} {'alone' if alone else 'together'}, as in {what}, host ratio {ratio:g}"
                for tokens, of in ((self._hits, "hits in any tier"), (self._recomputed, "recomputed tokens")):
                    yield Figure(f"{name}: {of} over LRU's", self._over_lru(tokens, workload, alone, ratio), "x")

    def _cases(self) -> list[tuple[str, float]]:
        return sorted({(run.workload, run.host_ratio) for run in self._hits if run.alone})

    @staticmethod
    def _over_lru(tokens: Counter[_Run], workload: str, alone: bool, ratio: float) -> float:
        return tokens[_Run(workload, alone, "pbkv", ratio)] / max(1, tokens[_Run(workload, alone, "lru", ratio)])


def _own(workload: Workload, name: str, run: SimulationResult) -> Workload:
    """The workflows of one workload, each of which starts as it did in a run of all."""
    starts = {record.arrival: record.submitted_at for record in run.steps if record.position == 0}
    arrivals = (
        replace(arrival, starts_at=starts[number])
        for number, arrival in enumerate(workload.arrivals)
        if arrival.workflow.workload == name
    )
    return Workload(name, tuple(arrivals), 0)


def _hits(workload: Workload, run: SimulationResult) -> Counter[str]:
    """Tokens that the cache delivered, by workload."""
    found = Counter[str]()
    for record in run.steps:
        found[_workload(workload, record.arrival)] += record.available_tokens - record.recomputed_tokens
    return found


def _workload(workload: Workload, arrival: int) -> str:
    return workload.arrivals[arrival].workflow.workload
