"""Tells the workers of a workflow of each other's steps, so that each one's record is of the whole workflow.

What a worker has not been told goes to it with a step, or in a call of its own as soon as a step has begun or ended elsewhere,
and before it is told of the workflow's end; the oldest first, in messages of bounded size. While there is one worker alone,
nothing is kept.
"""

import asyncio
from collections import OrderedDict

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.workflow.remote_steps import StepHistory
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.worker import RemoteSteps, Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow

HISTORY_BYTES = 256 << 20  # of all open workflows together
MESSAGE_BYTES = 1 << 20  # of what is told at a time; a step that is larger alone is told alone


class StepTeller:
    """The step histories of open workflows. Beyond a bound, those of the workflows silent for longest are dropped.

    A workflow whose history was dropped has a new one from its next step on, which tells whole prompts again.
    """

    def __init__(
        self,
        pool: WorkerPool,
        decisions: Decisions,
        clock: Clock,
        capacity_bytes: int = HISTORY_BYTES,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        """Args:
        pool: the workers.
        decisions: counts what was not heard.
        clock: dates the steps.
        capacity_bytes: of histories that are kept.
        message_bytes: of what is told at a time.
        """
        self._pool = pool
        self._decisions = decisions
        self._clock = clock
        self._capacity_bytes = capacity_bytes
        self._message_bytes = message_bytes
        # By the workflow itself: its id may be that of a later one by the time that its last step has left its worker.
        self._histories: OrderedDict[OpenWorkflow, StepHistory] = OrderedDict()  # silent for longest first
        self._telling: dict[tuple[OpenWorkflow, str], asyncio.Task[None]] = {}  # by workflow and worker
        self.size_bytes = 0  # of all histories

    def began(
        self,
        workflow: OpenWorkflow,
        number: int,
        agent: str,
        parent: int | None,
        tenant: str,
        prompt: bytes,
        worker: Worker,
        sent: bytes = b"",
    ) -> RemoteSteps | None:
        """A step is sent to a worker. Returns what the worker is to be told with it; None: nothing.

        Args:
            workflow: whose step it is.
            number: of the step.
            agent: that calls.
            parent: number of the step that it follows.
            tenant: whose blocks these are.
            prompt: packed.
            worker: where it goes.
            sent: packed output of a worker that was lost.
        """
        if workflow.ended:
            return None
        name = _name(worker)
        history = self._histories.get(workflow)
        if history is None:
            if len(self._pool.known()) < 2:
                return None
            # Above all indices that this gateway, or the one before it, has ever used for the workflow.
            history = self._histories[workflow] = StepHistory(int(self._clock.wall() * 1e6))
        untold = self._untold(workflow, worker)
        if untold is not None:
            history.told(name, untold.events)
        size_bytes = history.size_bytes
        history.began(number, agent, prompt, name, self._clock.now(), parent=parent, tenant=tenant, sent=sent)
        self._changed(workflow, history, size_bytes)
        return untold

    def ended(self, workflow: OpenWorkflow, number: int, output: bytes, lost: Worker | None = None) -> None:
        """A step has ended, or has left its worker.

        Args:
            workflow: whose step it is.
            number: of the step.
            output: packed, so far.
            lost: the worker, if it was lost: it may not have heard of what was told with the step.
        """
        history = self._histories.get(workflow)
        if history is None:
            return
        size_bytes = history.size_bytes
        history.ended(number, output, self._clock.now())
        if lost is not None:
            history.forget(_name(lost))
        self._changed(workflow, history, size_bytes)

    async def finish(self, workflow: OpenWorkflow, worker: Worker) -> None:
        """Tells a worker the rest of a workflow that has ended. Nothing is told after that: its end can be."""
        task = self._telling.get((workflow, _name(worker)))
        if task is not None:
            await asyncio.wait([task])
        history = self._histories.get(workflow)
        if history is not None and _name(worker) in history.workers:
            await self._tell(workflow, worker)

    def drop(self, workflow: OpenWorkflow) -> None:
        """Forgets a workflow."""
        history = self._histories.pop(workflow, None)
        if history is not None:
            self.size_bytes -= history.size_bytes

    async def close(self) -> None:
        """Ends the calls in flight."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self, workflow: OpenWorkflow, history: StepHistory, size_bytes: int) -> None:
        """Keeps to the bound, and has the other workers told.

        Args:
            workflow: that has changed.
            history: its.
            size_bytes: of the history before.
        """
        self.size_bytes += history.size_bytes - size_bytes
        self._histories.move_to_end(workflow)
        while self.size_bytes > self._capacity_bytes:
            # Those with a running step last: the end of that step will be told to nobody.
            idle = (each for each, history in self._histories.items() if not history.running)
            self.drop(next(idle, next(iter(self._histories))))
        if workflow.ended or workflow not in self._histories or len(history.workers) < 2:
            return
        for worker in self._pool.live():
            key = workflow, _name(worker)
            if key[1] in history.workers and key not in self._telling and history.untold(key[1], 0):
                self._telling[key] = asyncio.create_task(self._tell_soon(workflow, worker), name="steps elsewhere")

    async def _tell_soon(self, workflow: OpenWorkflow, worker: Worker) -> None:
        try:
            await self._tell(workflow, worker)
        finally:
            # Here, without a wait since nothing was left to tell: what happens next starts another task.
            del self._telling[workflow, _name(worker)]

    async def _tell(self, workflow: OpenWorkflow, worker: Worker) -> None:
        """Tells a worker all that it has not been told, until there is no more."""
        refused = 0
        while (untold := self._untold(workflow, worker)) is not None:
            history = self._histories[workflow]
            heard = await worker.tell_steps(workflow.id, untold)
            if self._histories.get(workflow) is not history:
                continue  # it was dropped, and what was told does not count for the one that may have taken its place
            if heard:
                history.told(_name(worker), untold.events)
                continue
            # What was told with a step that is still on its way comes first; or the worker is gone.
            self._decisions[Reason.STEP_UNHEARD] += 1
            history.forget(_name(worker))
            refused += 1
            if heard is None or refused > 1:
                return

    def _untold(self, workflow: OpenWorkflow, worker: Worker) -> RemoteSteps | None:
        history = self._histories.get(workflow)
        name = _name(worker)
        if history is None or not (events := history.untold(name, self._message_bytes)):
            return None
        return RemoteSteps(events, history.heard(name), self._clock.now())


def _name(worker: Worker) -> str:
    """A name of this incarnation: another one has heard nothing."""
    return "/".join(worker.key)
