"""Gathers what a replay measures, step by step, into its report."""

from pbkv_cluster.core.usage import HitMeter, Usage
from pbkv_cluster.simulator.replay.report import Failure, ReplayReport
from pbkv_cluster.simulator.spread import Spread


class Measurement:
    """What has happened in a replay so far."""

    def __init__(self) -> None:
        self._meter = HitMeter()
        self._ttfts: list[float] = []
        self._steps: list[float] = []
        self._latencies: list[float] = []
        self._failures: list[Failure] = []
        self._retries = 0
        self._preemptions = 0

    def step(self, usage: Usage) -> None:
        """A step has succeeded."""
        self._meter.add(usage)
        self._ttfts.append(usage.ttft_s)
        self._steps.append(usage.total_s)
        self._retries += usage.retries
        self._preemptions += usage.preemptions

    def workflow(self, latency_s: float) -> None:
        """A workflow has been completed."""
        self._latencies.append(latency_s)

    def failure(self, workflow: str, step: int | None, error: str) -> None:
        """A step has failed; None: the workflow could not be started or ended."""
        self._failures.append(Failure(workflow, step, error))

    def report(self, wall_s: float) -> ReplayReport:
        """All of it, for a replay that took so many seconds."""
        return ReplayReport(
            meter=self._meter,
            ttft=Spread.of(self._ttfts),
            step_latency=Spread.of(self._steps),
            workflow_latency=Spread.of(self._latencies),
            completed=len(self._latencies),
            retries=self._retries,
            preemptions=self._preemptions,
            failures=tuple(self._failures),
            wall_s=wall_s,
        )
