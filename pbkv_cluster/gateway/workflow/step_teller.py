"""Tells the workers of a workflow of each other's steps, so that each one's record is of the whole workflow.

What a worker has not been told goes with the next call to it: a step, the end of the workflow, or a call of its own as soon as
a step has begun or ended elsewhere. While there is one worker alone, nothing is kept.
"""

import asyncio
from collections import OrderedDict

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.workflow.remote_steps import StepHistory
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.worker import RemoteSteps, Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow

HISTORY_BYTES = 256 << 20  # of all open workflows' tokens


class StepTeller:
    """The step histories of open workflows. Beyond a bound, those of the workflows silent for longest are dropped."""

    def __init__(self, pool: WorkerPool, decisions: Decisions, clock: Clock, capacity_bytes: int = HISTORY_BYTES) -> None:
        """Args:
        pool: the workers.
        decisions: counts what was not heard.
        clock: dates the steps.
        capacity_bytes: of tokens that are kept.
        """
        self._pool = pool
        self._decisions = decisions
        self._clock = clock
        self._capacity_bytes = capacity_bytes
        self._histories: OrderedDict[str, StepHistory] = OrderedDict()  # silent for longest first
        self.size_bytes = 0  # of the tokens in all histories
        self._telling: dict[tuple[str, str], asyncio.Task[None]] = {}  # by workflow and worker

    def began(
        self, workflow: OpenWorkflow, number: int, agent: str, parent: int | None, tenant: str, prompt: bytes, worker: Worker
    ) -> RemoteSteps | None:
        """A step is sent to a worker. Returns what the worker is to be told with it; None: nothing."""
        name = _name(worker)
        history = self._histories.get(workflow.id)
        if history is None:
            if len(self._pool.known()) < 2:
                return None
            # Above all indices that this gateway, or the one before it, has ever used for the workflow.
            history = self._histories[workflow.id] = StepHistory(int(self._clock.wall() * 1e6))
        untold = self._untold(workflow, worker)
        if untold is not None:
            history.told(name, untold.events)
        size_bytes = history.size_bytes
        history.began(number, agent, prompt, name, self._clock.now(), parent=parent, tenant=tenant)
        self._changed(workflow, history, size_bytes)
        return untold

    def ended(self, workflow: OpenWorkflow, number: int, output: bytes, lost: Worker | None = None) -> None:
        """A step has ended, or has left its worker.

        Args:
            workflow: whose step it is.
            number: of the step.
            output: packed, so far.
            lost: the worker, if it did not finish the step: it may not have heard of what was told with it.
        """
        history = self._histories.get(workflow.id)
        if history is None:
            return
        size_bytes = history.size_bytes
        history.ended(number, output, self._clock.now())
        if lost is not None:
            history.forget(_name(lost))
        self._changed(workflow, history, size_bytes)

    def end(self, workflow: OpenWorkflow, worker: Worker) -> RemoteSteps | None:
        """What a worker is to be told with the end of the workflow; None: nothing."""
        return self._untold(workflow, worker)

    def drop(self, workflow: OpenWorkflow) -> None:
        """Forgets a workflow."""
        history = self._histories.pop(workflow.id, None)
        if history is not None:
            self.size_bytes -= history.size_bytes

    async def close(self) -> None:
        """Ends the calls in flight."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self, workflow: OpenWorkflow, history: StepHistory, size_bytes: int) -> None:
        """Has the other workers told, and keeps to the bound.

        Args:
            workflow: that has changed.
            history: its.
            size_bytes: of the history before.
        """
        self.size_bytes += history.size_bytes - size_bytes
        self._histories.move_to_end(workflow.id)
        if self._over():
            for name in [name for name, each in self._histories.items() if not each.running]:
                if self._over():
                    self.size_bytes -= self._histories.pop(name).size_bytes
        if len(history.workers) < 2:
            return
        for worker in self._pool.live():
            key = workflow.id, _name(worker)
            if key[1] in history.workers and key not in self._telling and history.untold(key[1]):
                task = asyncio.create_task(self._tell(workflow, worker), name="steps elsewhere")
                self._telling[key] = task
                task.add_done_callback(lambda _, key=key: self._telling.pop(key, None))  # type: ignore[misc]

    def _over(self) -> bool:
        return self.size_bytes > self._capacity_bytes

    async def _tell(self, workflow: OpenWorkflow, worker: Worker) -> None:
        """Tells a worker all that it has not been told, until there is no more."""
        refused = 0
        while (untold := self._untold(workflow, worker)) is not None and (history := self._histories.get(workflow.id)):
            heard = await worker.tell_steps(workflow.id, untold)
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
        history = self._histories.get(workflow.id)
        name = _name(worker)
        if history is None or not (events := history.untold(name)):
            return None
        return RemoteSteps(events, history.heard(name), self._clock.now())


def _name(worker: Worker) -> str:
    """A name of this incarnation: another one has heard nothing."""
    return "/".join(worker.key)
