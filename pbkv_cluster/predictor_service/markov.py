"""The online first-order Markov predictor: no training, a few kilobytes, useful after a handful of workflows."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service.base import Predictor
from pbkv_cluster.predictor_service.state_file import StateRefused
from pbkv_cluster.predictor_service.transitions import BOUNDARY, TransitionTable, unknown


@dataclass(slots=True)
class _Workflow:
    workload: str = ""
    current: str | None = BOUNDARY  # agent of the step that started last; None: not known
    whole: bool = True  # no event is missing since that step started
    sequence: int = -1
    step: int = -1  # number of that step


class MarkovPredictor(Predictor):
    """Counts transitions for each workload and for all together.

    A state is an agent id: call sites would name states more finely, but spread thin counts thinner. Transitions follow the
    order in which steps start, not `parent_step`: a join names one parent only, so that the other branches would seem to end
    the workflow.
    """

    kind: ClassVar[str] = "markov"
    version: ClassVar[int] = 1

    def __init__(self, config: PredictorConfig, max_agents: int = 2048, backoff: int = 4) -> None:
        """Args:
        config: the horizon K and the pseudo-count ε.
        max_agents: agents kept in all workloads together; beyond, the workload that was longest unused leaves.
        backoff: a state that its workload has left fewer times than this is forecast from all workloads, if they know more.
        """
        self._horizon = config.horizon
        self._smoothing = config.smoothing
        self._max_agents = max_agents
        self._backoff = backoff
        self._workflows: dict[str, _Workflow] = {}
        self._all = self._table()
        self._tables: OrderedDict[str, TransitionTable] = OrderedDict()  # by workload, longest unused first

    def observe(self, event: WorkflowEvent) -> None:
        workflow = self._workflows.setdefault(event.workflow, _Workflow())
        if event.sequence != workflow.sequence + 1:
            workflow.whole = False
            if workflow.sequence < 0:
                workflow.current = None
        workflow.sequence = event.sequence
        workflow.workload = event.workload or workflow.workload
        match event.kind:
            case EventKind.STEP_STARTED:
                self._count(workflow, event.agent)
                workflow.current, workflow.whole, workflow.step = event.agent, True, event.step
            case EventKind.STEP_FINISHED if workflow.current is None:
                workflow.current = event.agent
            case EventKind.WORKFLOW_ENDED:
                self._count(workflow, BOUNDARY)
                del self._workflows[event.workflow]

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> list[Forecast]:
        states, steps = [], []
        for name in workflows:
            workflow = self._workflows.get(name)
            states.append(("", BOUNDARY) if workflow is None else (workflow.workload, workflow.current))
            steps.append(-1 if workflow is None else workflow.step)
        known = self._chains(dict.fromkeys(states))
        each = zip(workflows, states, steps, strict=True)
        return [Forecast(name, epoch, made_at, *known[state], step) for name, state, step in each]

    def forget(self, workflow: str) -> None:
        self._workflows.pop(workflow, None)

    def dump(self) -> bytes:
        tables = {workload: table.to_state() for workload, table in self._tables.items()}
        return json.dumps({"all": self._all.to_state(), "workloads": tables}).encode()

    def restore(self, state: bytes) -> None:
        try:
            content = json.loads(state)
            if not isinstance(content, dict) or not isinstance(content.get("workloads"), dict) or "all" not in content:
                raise ValueError("it must hold a table called all and a mapping called workloads")
            together = self._saved(content["all"])
            tables = OrderedDict((workload, self._saved(table)) for workload, table in content["workloads"].items())
        except ValueError as error:
            raise StateRefused(f"the saved state does not fit the markov predictor: {error}") from error
        self._all, self._tables = together, tables
        self._bound()

    def _count(self, workflow: _Workflow, successor: str) -> None:
        table = self._tables.get(workflow.workload)
        grown = table is None
        if table is None:
            table = self._tables[workflow.workload] = self._table()
        self._tables.move_to_end(workflow.workload)
        for counts in (table, self._all):
            if successor != BOUNDARY:
                grown |= counts.see(successor)
            if workflow.whole and workflow.current is not None:
                counts.record(workflow.current, successor)
        if grown:
            self._bound()

    def _chains(
        self, states: dict[tuple[str, str | None], None]
    ) -> dict[tuple[str, str | None], tuple[tuple[StepForecast, ...], float]]:
        # Workflows in one state share one forecast, so a batch costs as much as it holds distinct states.
        found: dict[tuple[str, str | None], tuple[tuple[StepForecast, ...], float]] = {}
        by_table: dict[TransitionTable, list[tuple[str, str]]] = {}
        for workload, current in states:
            if current is None:
                found[workload, current] = unknown(self._horizon), 0.0
            else:
                by_table.setdefault(self._best_table(workload, current), []).append((workload, current))
        for table, pairs in by_table.items():
            chains = table.chain([current for _, current in pairs], self._horizon)
            for pair, steps in zip(pairs, chains, strict=True):
                found[pair] = steps, table.predictability()
        return found

    def _best_table(self, workload: str, current: str) -> TransitionTable:
        own = self._tables.get(workload)
        if own is None:
            return self._all
        left = own.left(current)
        return self._all if left < self._backoff and self._all.left(current) > left else own

    def _bound(self) -> None:
        # A workload counts one more than its agents, so that empty ones are bounded too.
        size = sum(len(table) + 1 for table in self._tables.values())
        while size > self._max_agents + 1 and len(self._tables) > 1:
            _, table = self._tables.popitem(last=False)
            size -= len(table) + 1

    def _table(self) -> TransitionTable:
        return TransitionTable(self._smoothing, self._max_agents)

    def _saved(self, state: object) -> TransitionTable:
        return TransitionTable.from_state(state, self._smoothing, self._max_agents)
