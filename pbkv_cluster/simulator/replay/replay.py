"""Replays workflows on a cluster in a closed loop: a fixed number at a time, each of which runs one step after the other."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pbkv_cluster.client import AsyncClient, AsyncWorkflow
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import InvalidArgument, PbkvError
from pbkv_cluster.core.tokens import count, pack
from pbkv_cluster.simulator.replay.measurement import Measurement
from pbkv_cluster.simulator.replay.report import ReplayReport
from pbkv_cluster.simulator.traces.step_traces import TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.prompts import PromptBuilder


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay."""

    concurrency: int = 8  # workflows that run at a time
    time_scale: float = 0.0  # factor of the recorded pauses; 0: no pauses
    tenant: str = ""
    id_suffix: str = ""  # added to workflow ids, so that a trace can be replayed twice on one cluster

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of range.
        """
        if self.concurrency < 1:
            raise InvalidArgument("concurrency", f"must be at least 1, got {self.concurrency}")
        if not 0 <= self.time_scale < math.inf:
            raise InvalidArgument("time_scale", f"must be finite and not negative, got {self.time_scale}")


class Replay:
    """One replay. It forces every step's reply, so that the next prompt is the recorded one; the server must allow that.

    A failed step ends its workflow. The other workflows go on. Cancelling `run` ends all workflows that are open.
    """

    def __init__(
        self,
        client: AsyncClient,
        prompts: PromptBuilder,
        options: ReplayOptions,
        on_step: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Args:
        client: of the cluster's gateway.
        prompts: rebuilds prompts and replies.
        options: how to replay.
        on_step: called after each step that succeeded.
        clock: times the replay.
        sleep: waits some seconds.
        """
        self._client = client
        self._prompts = prompts
        self._options = options
        self._on_step = on_step
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._measured = Measurement()

    async def run(self, workflows: Sequence[TraceWorkflow]) -> ReplayReport:
        """Replays the workflows, each in order as soon as fewer than `concurrency` run, and reports."""
        started = self._clock.now()
        queue = iter(workflows)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.concurrency):
                group.create_task(self._drain(queue))
        return self._measured.report(self._clock.now() - started)

    async def _drain(self, queue: Iterator[TraceWorkflow]) -> None:
        for workflow in queue:
            await self._play(workflow)

    async def _play(self, trace: TraceWorkflow) -> None:
        started = self._clock.now()
        opening = asyncio.create_task(
            self._client.start_workflow(
                workload=trace.workload, tenant=self._options.tenant, workflow_id=trace.id + self._options.id_suffix
            )
        )
        try:
            workflow = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the gateway may have opened it already
            with suppress(PbkvError):
                await (await opening).end()
            raise
        except PbkvError as error:
            self._measured.failure(trace.id, None, f"cannot be started: {error}")
            return
        try:
            if await self._run_steps(workflow, trace):
                self._measured.workflow(self._clock.now() - started)
        finally:  # also if the replay is interrupted
            try:
                await workflow.end()
            except PbkvError as error:
                self._measured.failure(trace.id, None, f"cannot be ended: {error}")

    async def _run_steps(self, workflow: AsyncWorkflow, trace: TraceWorkflow) -> bool:
        """Runs all steps; False if one failed."""
        for position, step in enumerate(trace.steps):
            try:
                await self._step(workflow, step)
                if position + 1 < len(trace.steps):
                    await self._pause(workflow, step)
            except PbkvError as error:
                self._measured.failure(trace.id, position, str(error))
                return False
        return True

    async def _step(self, workflow: AsyncWorkflow, step: TraceStep) -> None:
        forced = self._prompts.output(step)
        result = await workflow.run(
            agent=step.agent,
            prompt=self._prompts.prompt(step),
            max_tokens=count(forced),
            call_site=step.call_site,
            forced_output=forced,
        )
        if pack(result.token_ids) != forced:
            raise PbkvError(f"the server answered {len(result.token_ids)} tokens other than the {count(forced)} forced ones")
        self._measured.step(result.usage)
        self._on_step()

    async def _pause(self, workflow: AsyncWorkflow, step: TraceStep) -> None:
        seconds = step.pause_s * self._options.time_scale
        if not step.tool and not seconds:
            return
        # No expected duration: an application does not know it, and the recorded one would be the exact answer.
        async with workflow.tool(step.tool or "tool"):
            await self._sleep(seconds)
