"""The predictor: follows the workflows, and forecasts each by the experts of its workload."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import StepForecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.experts.mixture import Phase
from pbkv_cluster.predictor_service.predictor.agent_forecasts import AgentForecasts, agent_forecasts
from pbkv_cluster.predictor_service.predictor.base import ForecastQuality, Predictor, WorkloadQuality
from pbkv_cluster.predictor_service.predictor.explanation import Explanation, Opinion
from pbkv_cluster.predictor_service.predictor.learnt_events import LearntEvents
from pbkv_cluster.predictor_service.predictor.prediction_state import PredictionState
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.state.file import StateRefused
from pbkv_cluster.predictor_service.workflow.situation import END
from pbkv_cluster.predictor_service.workload.forecast_scores import ForecastScores
from pbkv_cluster.predictor_service.workload.recognizer import Recognizer
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel
from pbkv_cluster.predictor_service.workload.workloads import Workloads

_MAX_WORKLOADS = 64


class ExpertPredictor(Predictor):
    """Forecasts by any number of experts, named in the configuration; each workload has its own."""

    kind: ClassVar[str] = "experts"
    version: ClassVar[int] = 4

    def __init__(self, config: PredictorConfig, experts: Sequence[str], max_workloads: int = _MAX_WORKLOADS) -> None:
        """Args:
            config: the horizon K, and the experts' own settings.
            experts: their names, see `EXPERTS`.
            max_workloads: beyond, the longest unused one leaves.

        Raises:
            InvalidArgument: there is no expert of such a name.
        """
        self._config = config
        self._experts = tuple(experts)
        self._states: dict[str, PredictionState] = {}  # of the open workflows
        self._learnt = LearntEvents()  # of workflows that are not open here
        WorkloadModel(config, self._experts)  # refuses unknown experts at once
        self._scores = ForecastScores()
        self.workloads = Workloads(lambda: WorkloadModel(config, self._experts, self._scores), max_workloads)
        self._recognizer = Recognizer(self.workloads)
        self._unlearnt: dict[WorkloadModel, None] = {}  # models that may have something to learn

    def state_of(self, workflow: str) -> PredictionState | None:
        """The prediction state of an open workflow."""
        return self._states.get(workflow)

    def observe(self, event: WorkflowEvent) -> None:
        state = self._states.get(event.workflow)
        if state is None:
            state = self._states[event.workflow] = PredictionState(self._config.horizon)
            state.learnt_to = self._learnt.take(event)
        state.latest_at = event.time
        decision = self._recognizer.receive(state.recognition, event, self._is_new(state, event))
        if decision.restart:
            state.change_workload()
            if decision.events:
                state.sequence = decision.events[0].sequence - 1
        for each in decision.events:
            self._apply(state, each)
        if event.kind is EventKind.WORKFLOW_ENDED:
            self.forget(event.workflow)

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        by_model: dict[WorkloadModel | None, list[int]] = {}
        states = [self._states.get(name) for name in workflows]
        for at, state in enumerate(states):
            by_model.setdefault(None if state is None or state.latest is None else state.model, []).append(at)
        parts = []
        for model, positions in by_model.items():
            chosen = [states[at] for at in positions]
            moments = [state.latest for state in chosen if state is not None and state.latest is not None]
            rows = None if model is None else model.forecast(moments)
            parts.append(self._forecasts(model, [workflows[at] for at in positions], chosen, rows, epoch, made_at))
        return Forecasts.joined(parts)

    def explain(self, workflow: str) -> Explanation | None:
        state = self._states.get(workflow)
        if state is None or state.model is None:
            return None
        model = state.model
        forecast = self.forecast([workflow], 0, 0.0)[0]
        opinions: tuple[Opinion, ...] = ()
        moment = state.latest
        if moment is not None:
            (by_expert,) = model.expert_forecasts([moment])
            opinions = tuple(
                Opinion(name, tuple(weights.tolist()), self._steps(model, state, rows))
                for name, weights, rows in zip(self._experts, model.mixture.weights[moment.phase].T, by_expert, strict=True)
            )
        output_known = moment is not None and moment.phase is Phase.AFTER_OUTPUT
        workload, steps = state.recognition.workload_name, state.progress.steps
        return Explanation(forecast.steps, forecast.predictability, workload, steps, output_known, opinions)

    def learn(self) -> None:
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        if self._unlearnt:
            model = next(iter(self._unlearnt))
            del self._unlearnt[model]
            if model.learn_some():
                self._unlearnt[model] = None  # last, so that the models take turns
            model.train(self.trainer)
        return bool(self._unlearnt)

    def quality(self) -> ForecastQuality:
        models = zip(self.workloads.names, self.workloads.models(), strict=True)
        return ForecastQuality(
            self._scores,
            {
                name: WorkloadQuality(model.accuracy.scored, model.accuracy.value, model.predictability.value)
                for name, model in models
            },
        )

    def train(self) -> None:
        for model in self.workloads.models():
            model.train(self.trainer, now=True)

    def forget(self, workflow: str) -> None:
        if (state := self._states.pop(workflow, None)) is not None and state.learnt_from >= 0:
            self._learnt.add_closed(workflow, state.learnt_from, state.latest_at)

    def dump(self) -> bytes:
        made_by = {"experts": list(self._experts), "horizon": self._config.horizon}
        learnt = ((name, state.learnt_from, state.latest_at) for name, state in self._states.items() if state.learnt_from >= 0)
        return encoding.to_bytes(made_by | self.workloads.dump() | {"learnt": self._learnt.dump(learnt)})

    def restore(self, state: bytes) -> None:
        try:
            content = encoding.from_bytes(state)
            for name, now in (("experts", list(self._experts)), ("horizon", self._config.horizon)):
                if content.get(name) != now:
                    raise ValueError(f"predictor.{name} was {content.get(name)!r} then, and is {now!r} now")
            learnt = LearntEvents.restore(content.get("learnt"))
            self.workloads.restore(content)
            self._learnt = learnt
        except ValueError as error:
            raise StateRefused(f"the saved state does not fit this predictor: {error}") from error

    # --- events of one workflow, in order ---

    def _apply(self, state: PredictionState, event: WorkflowEvent) -> None:
        if event.sequence != state.sequence + 1:
            state.restart()
        state.sequence = event.sequence
        match event.kind:
            case EventKind.WORKFLOW_STARTED:
                self._start_workflow(state, event)
            case EventKind.STEP_STARTED:
                self._start_step(state, event)
            case EventKind.STEP_FINISHED:
                self._finish_step(state, event)
            case EventKind.WORKFLOW_ENDED:
                self._end_workflow(state, event)

    def _start_workflow(self, state: PredictionState, event: WorkflowEvent) -> None:
        state.progress.declare(event.graph)
        if state.model is not None:
            if event.graph is not None:
                state.model.declare([node.agent for node in event.graph.nodes], state.own_labels)
            _add_moment(state, state.model, finished=False, new_step=False)

    def _start_step(self, state: PredictionState, event: WorkflowEvent) -> None:
        model = state.model
        state.progress.start_step(event)
        if model is None:
            return
        new = self._is_new(state, event)
        label = model.label(event.agent, event.workflow, event.call_site, state.own_labels, counted=not new)
        self._add_outcome(state, model, label, new)
        state.progress.describe_step(label, event, model.pieces.known(event.pieces, event.workflow))
        if model.learns_workflows:
            state.all_labels.append(label)
        _add_moment(state, model, finished=False, new_step=True)

    def _finish_step(self, state: PredictionState, event: WorkflowEvent) -> None:
        state.progress.finish_step(event)
        # Only the latest step, once: another step is one of a parallel branch.
        if state.model is not None and event.step == state.progress.latest_step and len(state.moments[-1]) == 1:
            _add_moment(state, state.model, finished=True, new_step=False)

    def _end_workflow(self, state: PredictionState, event: WorkflowEvent) -> None:
        model, new = state.model, self._is_new(state, event)
        if model is None:
            return
        self._add_outcome(state, model, END, new)
        if new and state.recognition.settled:
            for later in range(1, self._config.horizon):  # after the end, every step of a forecast is the end
                awaiting = [(step + later, moment) for step, moment in state.awaiting() if step + later < self._config.horizon]
                if awaiting:
                    model.add_outcome(awaiting, END)
            model.learn_workflow(state.all_moments, state.all_labels)

    def _is_new(self, state: PredictionState, event: WorkflowEvent) -> bool:
        """Whether an event is to be learnt from."""
        return self.learning and event.sequence > state.learnt_to

    def _add_outcome(self, state: PredictionState, model: WorkloadModel, label: str, new: bool) -> None:
        if not self.learning or not state.recognition.settled:
            return
        awaiting = list(state.awaiting())
        if awaiting:
            model.add_outcome(awaiting, label, learnt=not new)
        if state.progress.agents and new:
            model.predictability.add_transition(state.progress.agents[-1], label)
        self._unlearnt[model] = None

    # --- forecasts ---

    def _forecasts(
        self,
        model: WorkloadModel | None,
        workflows: list[str],
        states: Sequence[PredictionState | None],
        rows: Floats | None,
        epoch: int,
        made_at: float,
    ) -> Forecasts:
        """Forecasts of workflows of one model, by agents' names."""
        number = len(workflows)
        if model is None or rows is None:
            steps = AgentForecasts.unknown(number, self._config.horizon)
        else:
            steps = agent_forecasts(model, [{} if state is None else state.own_labels for state in states], rows)
        return Forecasts(
            workflows,
            np.full(number, epoch, dtype=np.uint64),
            np.full(number, made_at),
            np.full(number, 0.0 if model is None else model.predictability.value, dtype=np.float32),
            np.array([-1 if state is None else state.progress.latest_step for state in states], dtype=np.int32),
            np.zeros(number, dtype=np.bool_),
            np.full(number, self._config.horizon, dtype=np.int32),
            *steps,
            ["" if state is None else state.recognition.workload_key for state in states],
        )

    def _steps(self, model: WorkloadModel, state: PredictionState, rows: Floats) -> tuple[StepForecast, ...]:
        """The steps of one expert's forecast; none if it abstains."""
        return self._forecasts(model, [""], [state], rows[None], 0, 0.0)[0].steps if rows.any() else ()


def _add_moment(state: PredictionState, model: WorkloadModel, finished: bool, new_step: bool) -> None:
    state.add_moment(model.moment(state.progress.situation(finished)), new_step)
