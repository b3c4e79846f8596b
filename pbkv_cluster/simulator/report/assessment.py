"""A report on one trace: the workload that is made of it, what could be saved, what is saved, and what that takes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.report.findings import Comparison, Findings, comparisons, findings, focus
from pbkv_cluster.simulator.report.potential import Potential, potential
from pbkv_cluster.simulator.report.sampling import Bounds, Sample, pseudo_share, sample
from pbkv_cluster.simulator.report.sweep import POLICIES, Size, sizes, sweep
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, Workload, assumed_think_scale, make_workload

SHARES = (0.3, 0.6, 1.0)
HOST_RATIOS = (0.0, 1.0)
MOST_WORKFLOWS = 96
_CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What to run."""

    shares: tuple[float, ...] = SHARES  # GPU memory over the contexts of open workflows
    host_ratios: tuple[float, ...] = HOST_RATIOS  # host memory over GPU memory
    most_workflows: int = MOST_WORKFLOWS
    concurrency: int | None = None  # workflows at a time; None: as the trace logs, or else a guess
    think_scale: float | None = None  # factor of random pauses; None: as `assumed_think_scale` says
    jobs: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Assessment:
    """The report. Times are virtual: of a cost model, not measured."""

    name: str
    machine: str  # whose cost model it is
    machine_blocks: int | None  # that fit on its GPUs; None: unknown
    block_bytes: int
    sampled: Sample
    steps: int
    pseudo_share: float
    assumptions: tuple[str, ...]
    potential: Potential
    comparisons: tuple[Comparison, ...]
    context_share: dict[Size, float] = field(repr=False)
    findings: Findings

    @property
    def focus(self) -> Comparison:
        """The size at which the policy matters most."""
        return focus(self.comparisons)

    def gigabytes(self, blocks: int) -> float:
        return blocks * self.block_bytes / 1e9

    def machine_note(self) -> str:
        """What the machine's own memory means for this load; empty: it is unknown."""
        if self.machine_blocks is None:
            return ""
        share = self.machine_blocks / max(1, self.potential.context_blocks)
        text = (
            f"{self.machine} has room for {self.machine_blocks:,} blocks ({self.gigabytes(self.machine_blocks):.0f} GB), "
            f"{share:.2g} times the contexts of the {self.potential.open_workflows} workflows that are open here at most"
        )
        if share < 1:
            return f"{text}: memory is short as it is."
        return f"{text}: memory gets short with about {round(share * self.potential.open_workflows):,} of them at a time."

    def to_json(self) -> dict[str, Any]:
        """As JSON values: tokens, blocks, bytes, seconds, shares from 0 to 1."""
        return {
            "trace": self.name,
            "machine": self.machine,
            "machine_blocks": self.machine_blocks,
            "block_bytes": self.block_bytes,
            "virtual_time": True,
            "workflows": len(self.sampled.trace.workflows),
            "workflows_in_trace": self.sampled.of_workflows,
            "steps": self.steps,
            "pseudo_share": self.pseudo_share,
            "assumptions": list(self.assumptions),
            "verdict": self.findings.verdict.value,
            "findings": list(self.findings.reasons),
            "potential": asdict(self.potential),
            "sizes": [self._size_json(each) for each in self.comparisons],
        }

    def _size_json(self, each: Comparison) -> dict[str, Any]:
        return {
            "gpu_blocks": each.size.gpu_blocks,
            "host_blocks": each.size.host_blocks,
            "gpu_bytes": each.size.gpu_blocks * self.block_bytes,
            "host_bytes": each.size.host_blocks * self.block_bytes,
            "context_share": self.context_share[each.size],
            "policies": {
                policy: {
                    "recomputed_tokens": outcome.recomputed_tokens,
                    "available_tokens": outcome.available_tokens,
                    "ttft_mean_s": outcome.ttft_mean_s,
                    "ttft_p90_s": outcome.ttft_p90_s,
                    "latency_mean_s": outcome.latency_mean_s,
                    "latency_p90_s": outcome.latency_p90_s,
                    "prefill_share": outcome.prefill_share,
                    "recomputed_by_agent": [
                        {"workload": workload, "agent": agent, "tokens": tokens}
                        for (workload, agent), tokens in outcome.recomputed_by_agent.items()
                    ],
                }
                for policy, outcome in zip(POLICIES, (each.lru, each.pbkv, each.clairvoyant), strict=True)
            },
        }


def assess(
    trace: Trace,
    setup: Setup,
    machine: str,
    machine_blocks: int | None,
    options: ReportOptions,
    on_run: Callable[[int, int], None] = lambda done, of: None,
) -> Assessment:
    """Makes a workload of a trace and reports on it.

    Args:
        trace: any.
        setup: cost model, engine, cache; its capacities and policy are ignored.
        machine: what the cost model is of.
        machine_blocks: that fit on the machine's GPUs, if known.
        options: what to run.
        on_run: called with the parts that are done and their number.

    Raises:
        InvalidArgument: an option is out of its range.
    """
    taken = sample(trace, Bounds(options.most_workflows), options.seed)
    workload, assumptions = _workload(taken, options)
    tokens = TokenSource(workload)
    could = potential(tokens, setup)
    wanted = sizes(could.context_blocks, could.largest_blocks, options.shares, options.host_ratios)
    parts, done = 2 * len(wanted) + 1, 1
    on_run(done, parts)

    def count_run() -> None:
        nonlocal done
        done += 1
        on_run(done, parts)

    share = pseudo_share(taken.trace.workflows)
    found = comparisons(sweep(tokens, setup, wanted, options.jobs, count_run))
    context_share = {size: size.gpu_blocks / max(1, could.context_blocks) for size in wanted}
    return Assessment(
        name=trace.name,
        machine=machine,
        machine_blocks=machine_blocks,
        block_bytes=setup.cost.block_bytes,
        sampled=taken,
        steps=sum(len(each.workflow.steps) for each in workload.arrivals),
        pseudo_share=share,
        assumptions=assumptions,
        potential=could,
        comparisons=tuple(found),
        context_share=context_share,
        findings=findings(could, share, found, context_share),
    )


def _workload(taken: Sample, options: ReportOptions) -> tuple[Workload, tuple[str, ...]]:
    """What is run, and what had to be assumed for it."""
    trace, assumed = taken.trace, []
    count = len(trace.workflows)
    if not taken.is_whole:
        how = "the first to arrive" if trace.starts_at is not None else "drawn at random"
        assumed.append(f"{count:,} of {taken.of_workflows:,} workflows were run, {how}.")
    if taken.cut:
        assumed.append(f"{taken.cut:,} workflows were too long, and were run without their last steps.")
    think = options.think_scale
    if think is None:
        think = assumed_think_scale([trace])
        if think:
            assumed.append("The trace logs no pauses: random ones with a median of 2 s were put between steps (--think-scale).")
    elif think:
        assumed.append(f"Random pauses with a median of {2 * think:g} s were added between steps.")
    concurrency = options.concurrency
    if trace.starts_at is not None and concurrency is None:
        return make_workload([trace], Mix(think_scale=think), options.seed), tuple(assumed)
    if concurrency is None:
        concurrency = max(1, min(_CONCURRENCY, count // 2))
        assumed.append(f"The trace logs no arrivals: {concurrency} workflows run at a time (--concurrency).")
    else:
        assumed.append(f"{concurrency} workflows run at a time.")
    untimed = Trace(trace.name, trace.workflows)
    return make_workload([untimed], Mix(concurrency=concurrency, think_scale=think), options.seed), tuple(assumed)
