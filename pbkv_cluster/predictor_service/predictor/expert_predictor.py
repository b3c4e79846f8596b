"""The predictor: follows the workflows and forecasts each by the experts of its workload."""

from array import array
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import StepForecast
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.predictor.agent_forecasts import Named, named
from pbkv_cluster.predictor_service.predictor.base import Predictor
from pbkv_cluster.predictor_service.predictor.explanation import Explanation, Opinion
from pbkv_cluster.predictor_service.state import encoding as state_bytes
from pbkv_cluster.predictor_service.state.file import StateRefused
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.prediction_state import PredictionState
from pbkv_cluster.predictor_service.workflow.situation import END
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel
from pbkv_cluster.predictor_service.workload.workloads import Workloads

_MOST_WORKLOADS = 64


class ExpertPredictor(Predictor):
    """Any number of experts, by name, for each workload that comes."""

    kind: ClassVar[str] = "experts"
    version: ClassVar[int] = 3

    def __init__(self, config: PredictorConfig, experts: Sequence[str], most_workloads: int = _MOST_WORKLOADS) -> None:
        """Args:
            config: the horizon K, and what the experts have of their own.
            experts: their names, see `EXPERTS`.
            most_workloads: beyond, the one that was longest unused leaves.

        Raises:
            InvalidArgument: there is no expert of such a name.
        """
        self._config = config
        self._experts = tuple(experts)
        self._tracks: dict[str, PredictionState] = {}
        self._workloads = Workloads(config, self._experts, most_workloads, self._tracks.values())
        self._unlearnt: dict[WorkloadModel, None] = {}

    def observe(self, event: WorkflowEvent) -> None:
        track = self._tracks.get(event.workflow)
        if track is None:
            track = self._tracks[event.workflow] = PredictionState(self._config.horizon)
        for each in self._workloads.place(track, event, self.learning):
            self._take(track, each)
        if event.kind is EventKind.WORKFLOW_ENDED:
            del self._tracks[event.workflow]

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        asked: dict[WorkloadModel | None, list[int]] = {}
        tracks = [self._tracks.get(name) for name in workflows]
        for at, track in enumerate(tracks):
            asked.setdefault(None if track is None or track.latest is None else track.model, []).append(at)
        parts = []
        for model, places in asked.items():
            chosen = [tracks[at] for at in places]
            moments = [track.latest for track in chosen if track is not None and track.latest is not None]
            rows = None if model is None else model.forecast(moments)
            parts.append(self._told(model, [workflows[at] for at in places], chosen, rows, epoch, made_at))
        return Forecasts.joined(parts)

    def explain(self, workflow: str) -> Explanation | None:
        track = self._tracks.get(workflow)
        if track is None or track.model is None:
            return None
        model = track.model
        forecast = self.forecast([workflow], 0, 0.0)[0]
        opinions: tuple[Opinion, ...] = ()
        moment = track.latest
        if moment is not None:
            (said,) = model.ask([moment])
            opinions = tuple(
                Opinion(name, tuple(weights.tolist()), self._steps(model, track, rows))
                for name, weights, rows in zip(self._experts, model.mixture.weights[moment.phase].T, said, strict=True)
            )
        known = moment is not None and moment.phase == 1
        return Explanation(forecast.steps, forecast.predictability, track.workload, track.steps, known, opinions)

    def learn(self) -> None:
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        if self._unlearnt:
            model = next(iter(self._unlearnt))
            del self._unlearnt[model]
            if model.learn_some():
                self._unlearnt[model] = None  # it is another's turn
            model.train(self.trainer)
        return bool(self._unlearnt)

    def train(self) -> None:
        for model in self._workloads.all():
            model.train(self.trainer, now=True)

    def forget(self, workflow: str) -> None:
        self._tracks.pop(workflow, None)

    def dump(self) -> bytes:
        made_by = {"experts": list(self._experts), "horizon": self._config.horizon}
        return state_bytes.to_bytes(made_by | self._workloads.dump())

    def restore(self, state: bytes) -> None:
        try:
            content = state_bytes.from_bytes(state)
            for name, now in (("experts", list(self._experts)), ("horizon", self._config.horizon)):
                if content.get(name) != now:
                    raise ValueError(f"predictor.{name} was {content.get(name)!r} then, and is {now!r} now")
            self._workloads.restore(content)
        except ValueError as error:
            raise StateRefused(f"the saved state does not fit this predictor: {error}") from error

    def _take(self, track: PredictionState, event: WorkflowEvent) -> None:
        if event.sequence != track.sequence + 1:
            track.restart()
        track.sequence = event.sequence
        match event.kind:
            case EventKind.WORKFLOW_STARTED:
                track.graph = event.graph
                track.walk = None if event.graph is None else GraphWalk.of(event.graph)
                if track.model is not None:
                    if event.graph is not None:
                        track.model.declare([node.agent for node in event.graph.nodes], track.own)
                    self._remember(track, finished=False, new_step=False)
            case EventKind.STEP_STARTED:
                self._began(track, event)
            case EventKind.STEP_FINISHED:
                self._finished(track, event)
            case EventKind.WORKFLOW_ENDED:
                self._ended(track)

    def _remember(self, track: PredictionState, finished: bool, new_step: bool) -> None:
        assert track.model is not None
        track.remember(track.model.moment(track.situation(finished)), new_step)

    def _began(self, track: PredictionState, event: WorkflowEvent) -> None:
        model = track.model
        track.number, track.steps = event.step, event.step + 1
        if track.walk is not None:
            track.walk = track.walk.after(event.agent)
        if model is None:
            return
        label = model.label(event.agent, event.workflow, event.call_site, track.own)
        self._came(track, model, label)
        if event.words:
            track.task = array("I", event.words)
        track.began(label, event.call_site, model.pieces.known(event.pieces, event.workflow), event.prompt_tokens)
        self._remember(track, finished=False, new_step=True)

    def _finished(self, track: PredictionState, event: WorkflowEvent) -> None:
        track.finished(event)
        if (
            track.model is not None and event.step == track.number and len(track.moments[-1]) == 1
        ):  # else a branch beside the latest step
            self._remember(track, finished=True, new_step=False)

    def _ended(self, track: PredictionState) -> None:
        if track.model is None:
            return
        self._came(track, track.model, END)
        if self.learning and track.settled:
            for behind in range(1, self._config.horizon):
                waiting = [(step + behind, moment) for step, moment in track.waiting() if step + behind < self._config.horizon]
                if waiting:
                    track.model.came(waiting, END)
            track.model.ended(track.whole, track.labels)

    def _came(self, track: PredictionState, model: WorkloadModel, label: str) -> None:
        if not self.learning or not track.settled:
            return
        waiting = list(track.waiting())
        if waiting:
            model.came(waiting, label)
        if track.agents:
            model.predictability.seen(track.agents[-1], label)
        self._unlearnt[model] = None

    def _told(
        self,
        model: WorkloadModel | None,
        workflows: list[str],
        tracks: Sequence[PredictionState | None],
        rows: Floats | None,
        epoch: int,
        made_at: float,
    ) -> Forecasts:
        """Forecasts of workflows of one model, by agents' names. Without a model, they go on with any agents."""
        number = len(workflows)
        if model is None or rows is None:
            shape, nobody = (number, self._config.horizon), np.zeros(0, dtype=np.int32)
            steps = Named(np.ones(shape, np.float32), np.zeros(shape, np.int32), nobody, nobody.astype(np.float32), [])
        else:
            steps = named(model, tracks, rows)
        return Forecasts(
            workflows,
            np.full(number, epoch, dtype=np.uint64),
            np.full(number, made_at),
            np.full(number, 0.0 if model is None else model.predictability.value, dtype=np.float32),
            np.array([-1 if track is None else track.number for track in tracks], dtype=np.int32),
            np.zeros(number, dtype=np.bool_),
            np.full(number, self._config.horizon, dtype=np.int32),
            *steps,
        )

    def _steps(self, model: WorkloadModel, track: PredictionState, rows: Floats) -> tuple[StepForecast, ...]:
        """What one row of an expert says; nothing, where it abstains."""
        return self._told(model, [""], [track], rows[None], 0, 0.0)[0].steps if rows.any() else ()
