"""What the project wants of a policy, by the memory that it has. A figure without a goal is shown as well."""

from collections.abc import Iterator, Mapping

from benchmarks.policies.job import WHOLE, Disturbance
from benchmarks.policies.pooled import Pooled
from benchmarks.policies.row_file import Scene
from benchmarks.report import Figure
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND

_OURS = "pbkv"  # the policy that the goals are for
_Goals = Mapping[float, float]
"""Goals by pressure."""

_RECOMPUTED: Mapping[float, _Goals] = {  # over LRU's, at most; by host ratio
    0.5: {0.25: 0.70, 0.45: 0.55, 0.65: 0.45},
    2.0: {0.25: 0.45, 0.45: 0.55, 0.65: 0.38},
}
_GAP = 0.65  # of recomputed tokens, at least, at any pressure, where there is host memory
_GPU_GAP: _Goals = {0.25: 0.70, 0.45: 0.75, 0.65: 0.84, 0.8: 0.90}  # at least, with the GPU alone
_ONLINE_GPU_GAP: _Goals = {0.25: 0.76, 0.45: 0.66, 0.65: 0.63, 0.8: 0.63}
_GPU_RATIO: _Goals = {0.25: 1.48, 0.45: 1.54, 0.65: 1.40, 0.8: 1.22}
_PREFETCH_GPU_RATIO: _Goals = {0.25: 2.0, 0.45: 1.6, 0.65: 1.35}  # GPU hits over LRU's with prefetch, at least
_PREFETCH_GPU_BEST = 2.55  # likewise, of the best workload, at the highest pressure
PREFETCH_WORST = 0.99  # hits with prefetch over those without, of any run
_CPU_S = 10.0  # processor time of a run, at most
_WORST = 0.99  # of LRU's hits in any tier, on any workload
_WORST_UNDER_NOISE, _WORST_UNDER_ADVERSARY = 0.99, 0.98  # likewise, whatever the policy


def with_goals(line: Pooled, scene: Scene, disturbance: Disturbance) -> Iterator[Figure]:
    """A policy with noise or as an adversary has to stay close to LRU; ours has to reach its goals when undisturbed."""
    if not disturbance.guard or line.policy in (BASELINE, BOUND):
        return
    what = f"{line.policy} at {100 * line.pressure:g} %"
    if disturbance.adversary or disturbance.noise:
        least = _WORST_UNDER_ADVERSARY if disturbance.adversary else _WORST_UNDER_NOISE
        name = f"{what} ({disturbance}): any-tier hits over LRU's, worst workload, {line.worst_workload}"
        yield Figure(name, line.worst_any, "x", at_least=least)
    elif line.policy == _OURS:
        yield from _ours(line, scene, what)
        if disturbance.prefetch != "none":
            goal = _PREFETCH_GPU_RATIO.get(line.pressure)
            yield Figure(f"{what} ({disturbance}): GPU hits over LRU's", line.gpu, "x", at_least=goal)
            best = _PREFETCH_GPU_BEST if line.pressure == min(_PREFETCH_GPU_RATIO) else None
            yield Figure(f"{what} ({disturbance}): GPU hits over LRU's, best workload", line.gpu_best, "x", at_least=best)


def _ours(line: Pooled, scene: Scene, what: str) -> Iterator[Figure]:
    trained, at = scene.part != WHOLE, line.pressure
    if line.recomputed is not None:
        goal = _RECOMPUTED.get(scene.host_ratio, {}).get(at) if trained else None
        yield Figure(f"{what}: recomputed tokens over LRU's", line.recomputed, "x", at_most=goal)
    for which, found in (("best", line.recomputed_best), ("worst", line.recomputed_worst)):
        if found is not None:
            yield Figure(f"{what}: recomputed tokens over LRU's, {which} workload, {found[1]}", found[0], "x")
    if line.gap_closed is not None:
        goal = _GAP if trained and scene.host_ratio else None
        yield Figure(f"{what}: gap in recomputed tokens closed", line.gap_closed, "", at_least=goal)
    name = f"{what}: any-tier hits over LRU's, worst workload, {line.worst_workload}"
    yield Figure(name, line.worst_any, "x", at_least=_WORST if trained else None)
    yield Figure(f"{what}: workflow latency over LRU's", line.latency, "x")
    yield Figure(f"{what}: first token over LRU's", line.ttft, "x")
    if line.cpu_s is not None:
        seconds, workload = line.cpu_s
        yield Figure(f"{what}: processor time of the longest run, {workload}", seconds, "s", at_most=_CPU_S)
    alone = not scene.host_ratio
    if line.gpu_gap_closed is not None:
        goal = (_GPU_GAP if trained else _ONLINE_GPU_GAP).get(at) if alone else None
        yield Figure(f"{what}: gap in GPU hits closed", line.gpu_gap_closed, "", at_least=goal)
    yield Figure(f"{what}: GPU hits over LRU's", line.gpu, "x", at_least=_GPU_RATIO.get(at) if alone and trained else None)
