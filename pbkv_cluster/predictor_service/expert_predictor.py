"""The predictor: keeps track of the workflows, asks the experts of their workload, and joins what they say."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service import state_bytes
from pbkv_cluster.predictor_service.base import Predictor
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.labels import named
from pbkv_cluster.predictor_service.situation import END
from pbkv_cluster.predictor_service.state_file import StateRefused
from pbkv_cluster.predictor_service.track import Track
from pbkv_cluster.predictor_service.workload_model import WorkloadModel

NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
_MOST_WORKLOADS = 64


class ExpertPredictor(Predictor):
    """Any number of experts, by name, for each workload that comes."""

    kind: ClassVar[str] = "experts"
    version: ClassVar[int] = 1

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
        self._most_workloads = most_workloads
        self._tracks: dict[str, Track] = {}
        self._models: OrderedDict[str, WorkloadModel] = OrderedDict()  # by workload, longest unused first
        self._unlearnt: dict[WorkloadModel, None] = {}
        self._model("")  # an unknown expert is refused at once

    def observe(self, event: WorkflowEvent) -> None:
        track = self._tracks.get(event.workflow)
        if track is None:
            track = self._tracks[event.workflow] = Track(self._config.horizon)
        if event.sequence != track.sequence + 1:
            track.restart()
        track.sequence = event.sequence
        self._place(track, event)
        match event.kind:
            case EventKind.WORKFLOW_STARTED:
                track.graph = event.graph
                self._remember(track, finished=False, new_step=True)
            case EventKind.STEP_STARTED:
                self._began(track, event)
            case EventKind.STEP_FINISHED:
                self._finished(track, event)
            case EventKind.WORKFLOW_ENDED:
                self._ended(track)
                del self._tracks[event.workflow]

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> list[Forecast]:
        tracks = [self._tracks.get(name) for name in workflows]
        asked: dict[WorkloadModel, list[int]] = {}
        for at, track in enumerate(tracks):
            if track is not None and track.model is not None and track.moments:
                asked.setdefault(track.model, []).append(at)
        unknown = (StepForecast({}, 1.0),) * self._config.horizon
        found: list[tuple[StepForecast, ...]] = [unknown] * len(workflows)
        for model, places in asked.items():
            chosen = [tracks[at] for at in places]
            rows = model.forecast([track.moments[-1][-1] for track in chosen if track is not None])
            for at, steps in zip(places, _steps(model, chosen, rows), strict=True):
                found[at] = steps
        return [
            Forecast(
                name,
                epoch,
                made_at,
                steps,
                0.0 if track is None or track.model is None else track.model.predictability.value,
                -1 if track is None else track.number,
            )
            for name, track, steps in zip(workflows, tracks, found, strict=True)
        ]

    def learn(self) -> None:
        unlearnt, self._unlearnt = self._unlearnt, {}
        for model in unlearnt:
            model.learn()
            model.train(self.trainer)

    def train(self) -> None:
        for model in self._models.values():
            model.train(self.trainer, now=True)

    def forget(self, workflow: str) -> None:
        self._tracks.pop(workflow, None)

    def dump(self) -> bytes:
        workloads = {name: model.dump() for name, model in self._models.items()}
        return state_bytes.to_bytes({"experts": list(self._experts), "horizon": self._config.horizon, "workloads": workloads})

    def restore(self, state: bytes) -> None:
        models: OrderedDict[str, WorkloadModel] = OrderedDict()
        try:
            content = state_bytes.from_bytes(state)
            for name in ("experts", "horizon"):
                now = list(self._experts) if name == "experts" else self._config.horizon
                if content.get(name) != now:
                    raise ValueError(f"predictor.{name} was {content.get(name)!r} then, and is {now!r} now")
            workloads: Any = content.get("workloads")
            if not isinstance(workloads, dict):
                raise ValueError("it holds no workloads")
            for name, each in workloads.items():
                models[name] = WorkloadModel(self._config, self._experts)
                models[name].restore(each if isinstance(each, dict) else {})
        except ValueError as error:
            raise StateRefused(f"the saved state does not fit this predictor: {error}") from error
        self._models = models

    def _model(self, workload: str) -> WorkloadModel:
        model = self._models.get(workload)
        if model is None:
            model = self._models[workload] = WorkloadModel(self._config, self._experts)
            if len(self._models) > self._most_workloads:
                self._models.popitem(last=False)
        self._models.move_to_end(workload)
        return model

    def _place(self, track: Track, event: WorkflowEvent) -> None:
        """Finds the workload that a workflow belongs to."""
        workload = event.workload or track.workload
        if track.model is None or workload != track.workload:
            track.restart()
            track.workload = workload
            track.own = {}
            track.model = self._model(workload)

    def _remember(self, track: Track, finished: bool, new_step: bool) -> None:
        assert track.model is not None
        track.remember(track.model.moment(track.situation(finished)), new_step)

    def _began(self, track: Track, event: WorkflowEvent) -> None:
        model = track.model
        assert model is not None
        label = model.label(event.agent, event.workflow, event.call_site, track.own)
        self._came(track, model, label)
        track.number, track.steps = event.step, event.step + 1
        if event.words:
            track.task = event.words
        track.began(label, event.call_site, model.pieces.known(event.pieces, event.workflow))
        self._remember(track, finished=False, new_step=True)

    def _finished(self, track: Track, event: WorkflowEvent) -> None:
        track.words, track.hidden = event.words, event.hidden
        if event.step == track.number and len(track.moments[-1]) == 1:  # else a branch beside the latest step
            self._remember(track, finished=True, new_step=False)

    def _ended(self, track: Track) -> None:
        if track.model is None:
            return
        self._came(track, track.model, END)
        if self.learning:
            for first, moment in track.waiting():
                for step in range(first + 1, self._config.horizon):
                    track.model.came(moment, step, END)
            track.model.ended(track.whole, track.labels)

    def _came(self, track: Track, model: WorkloadModel, label: str) -> None:
        if not self.learning:
            return
        for step, moment in track.waiting():
            model.came(moment, step, label)
        if track.agents:
            model.predictability.seen(track.agents[-1], label)
        self._unlearnt[model] = None


def _steps(model: WorkloadModel, tracks: Sequence[Track | None], rows: Floats) -> list[tuple[StepForecast, ...]]:
    survival = 1.0 - rows[:, :, 0]
    known = rows.sum(axis=2) > 0.0
    agents = rows[:, :, 1:] / np.maximum(survival, 1e-9)[:, :, None]
    alive = np.where(known, np.clip(survival, np.finfo(np.float32).tiny, 1.0), 1.0).tolist()
    shared = model.labels.names[1:]
    columns: Any = None
    if len(shared) > NAMED_AGENTS:
        columns = np.argpartition(-agents, NAMED_AGENTS, axis=2)[:, :, :NAMED_AGENTS]
        agents = np.take_along_axis(agents, columns, axis=2)
        columns = columns.tolist()
    found = []
    has_places = any(name.startswith(("#", "@")) for name in shared)
    for at, (track, chances) in enumerate(zip(tracks, agents.tolist(), strict=True)):
        assert track is not None
        names: Sequence[str | None] = named(shared, track.own) if has_places else shared
        steps = []
        for step, row in enumerate(chances):
            chosen = names if columns is None else [names[column] for column in columns[at][step]]
            if has_places:
                told = {name: chance for name, chance in zip(chosen, row, strict=True) if name is not None}
            else:
                told = dict(zip(chosen, row, strict=True))
            steps.append(StepForecast(told, alive[at][step]))
        found.append(tuple(steps))
    return found
