"""Tells simulated workers of each other's steps of a workflow, as a gateway does, without its delays."""

from collections.abc import Sequence

from pbkv_cluster.core.workflow.remote_steps import StepHistory
from pbkv_cluster.simulator.engine.worker import SimulatedWorker
from pbkv_cluster.simulator.workload.token_source import NAMESPACE


class SimulatedTeller:
    """The step histories of the open workflows; none while there is one worker."""

    def __init__(self, workers: Sequence[SimulatedWorker]) -> None:
        """Args:
        workers: of the cluster.
        """
        self._workers = {worker.id: worker for worker in workers}
        self._histories: dict[str, StepHistory] = {}

    def began(self, workflow: str, number: int, agent: str, prompt: bytes, worker: SimulatedWorker, now: float) -> None:
        """A step is about to be submitted to a worker.

        Args:
            workflow: its id.
            number: of the step.
            agent: that calls.
            prompt: packed.
            worker: that runs it.
            now: seconds.
        """
        if len(self._workers) == 1:
            return
        history = self._histories.setdefault(workflow, StepHistory())
        self._tell(workflow, history, worker.id)
        history.began(number, agent, prompt, worker.id, now)
        self._tell_all(workflow, history)

    def ended(self, workflow: str, number: int, output: bytes, now: float) -> None:
        """A step has ended; `output` is packed."""
        if (history := self._histories.get(workflow)) is not None:
            history.ended(number, output, now)
            self._tell_all(workflow, history)

    def drop(self, workflow: str) -> None:
        """A workflow has ended."""
        self._histories.pop(workflow, None)

    def _tell_all(self, workflow: str, history: StepHistory) -> None:
        for name in history.workers:
            self._tell(workflow, history, name)

    def _tell(self, workflow: str, history: StepHistory, name: str) -> None:
        if untold := history.untold(name):
            self._workers[name].cache.hear(workflow, untold, NAMESPACE)
            history.told(name, untold)
