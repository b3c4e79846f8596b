"""The predictor: keeps track of the workflows, asks the experts of their workload, and joins what they say."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service import state_bytes
from pbkv_cluster.predictor_service.base import Predictor
from pbkv_cluster.predictor_service.explanation import Explanation, Opinion
from pbkv_cluster.predictor_service.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.naming import steps_of
from pbkv_cluster.predictor_service.recognition import STEPS, Recognition, Scores, evidence_of
from pbkv_cluster.predictor_service.situation import END
from pbkv_cluster.predictor_service.state_file import StateRefused
from pbkv_cluster.predictor_service.track import Track
from pbkv_cluster.predictor_service.workload_model import WorkloadModel

_MOST_WORKLOADS = 64
_MOST_HELD = 16 * STEPS  # events of a workflow whose workload is not settled


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
        self._recognition = Recognition()
        self._unnamed: dict[str, None] = {}  # workloads that no client has named yet
        self._opened = 0  # of these, ever
        self._unlearnt: dict[WorkloadModel, None] = {}
        WorkloadModel(config, experts)  # an unknown expert is refused at once

    def observe(self, event: WorkflowEvent) -> None:
        track = self._tracks.get(event.workflow)
        if track is None:
            track = self._tracks[event.workflow] = Track(self._config.horizon)
        if event.workload and event.workload != track.name:
            self._named(track, event.workload)
        self._weigh(track, event)
        if track.settled:
            self._take(track, event)
        else:
            self._hold(track, event)
        if event.kind is EventKind.WORKFLOW_ENDED:
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
            for at, steps in zip(places, steps_of(model, chosen, rows), strict=True):
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

    def explain(self, workflow: str) -> Explanation | None:
        track = self._tracks.get(workflow)
        if track is None or track.model is None:
            return None
        model = track.model
        (forecast,) = self.forecast([workflow], 0, 0.0)
        opinions: tuple[Opinion, ...] = ()
        moment = track.moments[-1][-1] if track.moments else None
        if moment is not None and moment.outputs is not None:
            opinions = tuple(
                Opinion(
                    name,
                    tuple(model.mixture.weights[moment.phase, :, at].tolist()),
                    steps_of(model, [track], moment.outputs[at : at + 1])[0] if moment.outputs[at].any() else (),
                )
                for at, name in enumerate(self._experts)
            )
        known = moment is not None and moment.phase == 1
        return Explanation(forecast.steps, forecast.predictability, track.workload, track.steps, known, opinions)

    def learn(self) -> None:
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        if self._unlearnt:
            model = next(iter(self._unlearnt))
            if not model.learn_some():
                del self._unlearnt[model]
                model.train(self.trainer)
        return bool(self._unlearnt)

    def train(self) -> None:
        for model in self._models.values():
            model.train(self.trainer, now=True)

    def forget(self, workflow: str) -> None:
        self._tracks.pop(workflow, None)

    def dump(self) -> bytes:
        workloads = {name: model.dump() for name, model in self._models.items()}
        return state_bytes.to_bytes(
            {
                "experts": list(self._experts),
                "horizon": self._config.horizon,
                "workloads": workloads,
                "recognition": self._recognition.dump(),
                "unnamed": list(self._unnamed),
                "opened": self._opened,
            }
        )

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
            recognised, unnamed, opened = content.get("recognition"), content.get("unnamed"), content.get("opened")
            if not isinstance(recognised, dict) or not recognised.keys() <= models.keys():
                raise ValueError("what workloads are recognised by is not of these workloads")
            recognition = Recognition.restore(recognised)
            if (
                not isinstance(unnamed, list)
                or not all(isinstance(name, str) for name in unnamed)
                or not recognised.keys() >= set(unnamed)
                or type(opened) is not int
            ):
                raise ValueError("the unnamed workloads are not of these workloads")
        except ValueError as error:
            raise StateRefused(f"the saved state does not fit this predictor: {error}") from error
        self._models, self._recognition = models, recognition
        self._unnamed, self._opened = dict.fromkeys(unnamed), opened

    def _model(self, workload: str) -> WorkloadModel:
        model = self._models.get(workload)
        if model is None:
            model = self._models[workload] = WorkloadModel(self._config, self._experts)
            if len(self._models) > self._most_workloads:
                self._leave(next(iter(self._models)))
        self._models.move_to_end(workload)
        return model

    def _leave(self, workload: str) -> None:
        del self._models[workload]
        self._unnamed.pop(workload, None)
        self._recognition.forget(workload)

    def _named(self, track: Track, name: str) -> None:
        """The client names a workflow's workload."""
        track.name = name
        self._unnamed.pop(name, None)
        if track.settled and track.workload in self._unnamed and name not in self._models:
            self._rename(track.workload, name)
            track.workload = name
        elif name in self._recognition or not self._unnamed:
            self._settle(track, name)
        elif track.settled:  # of another workload: it may be one that has been known without a name
            self._move(track, "", None)
            track.settled, track.evidence = False, Scores()

    def _weigh(self, track: Track, event: WorkflowEvent) -> None:
        """Takes in what one of the first steps tells of the workload."""
        if track.evidence is None:
            return
        if event.kind is EventKind.WORKFLOW_ENDED and track.settled:
            self._decide(track)
        if event.kind is not EventKind.STEP_STARTED:
            return
        step = evidence_of(event.step, event.agent, event.call_site, event.pieces)
        if track.settled:
            track.evidence.steps.append(step)
        else:
            self._recognition.seen(track.evidence, step)
        if len(track.evidence.steps) == STEPS:
            self._decide(track)

    def _decide(self, track: Track) -> None:
        """All that there will be is known of a workflow's first steps: settles its workload, and learns what they look like."""
        evidence, track.evidence = track.evidence, None
        if evidence is None or not evidence.steps:
            return
        if not track.settled:
            workload = self._recognition.best(evidence, self._unnamed if track.name else None)
            if track.name:
                if workload and track.name not in self._models:
                    self._rename(workload, track.name)
                workload = track.name
            elif not workload and self.learning:
                workload = self._open()
            self._settle(track, workload)
        if self.learning and track.workload in self._models:
            self._recognition.learn(track.workload, evidence.steps)

    def _open(self) -> str:
        """A name for a workload that nobody has named."""
        if len(self._unnamed) >= max(1, self._most_workloads // 2):
            self._leave(next(name for name in self._models if name in self._unnamed))
        self._opened += 1
        name = f"unnamed-{self._opened}"
        self._unnamed[name] = None
        return name

    def _rename(self, workload: str, name: str) -> None:
        self._models[name] = self._models.pop(workload)
        self._recognition.rename(workload, name)
        self._unnamed.pop(workload, None)
        for track in self._tracks.values():
            if track.workload == workload:
                track.workload = name

    def _settle(self, track: Track, workload: str) -> None:
        self._move(track, workload, self._model(workload) if workload else None)
        track.settled = True
        held, track.held = track.held, []
        for event in held:
            self._take(track, event)

    def _move(self, track: Track, workload: str, model: WorkloadModel | None) -> None:
        """Forgets what a workflow was to another workload."""
        track.restart()
        track.workload, track.model, track.own = workload, model, {}
        if track.held:
            track.sequence = track.held[0].sequence - 1

    def _hold(self, track: Track, event: WorkflowEvent) -> None:
        """Forecasts by the workload that seems likeliest, and learns nothing for now."""
        track.held.append(event)
        if event.kind is EventKind.WORKFLOW_ENDED or len(track.held) > _MOST_HELD:
            self._decide(track)
            if not track.settled:  # no step has begun
                track.held = []
            return
        workload = ""
        if track.evidence is not None:
            workload = self._recognition.best(track.evidence, self._unnamed if track.name else None)
        if workload == track.workload:
            self._take(track, event)
            return
        self._move(track, workload, self._models.get(workload))
        for each in track.held:
            self._take(track, each)

    def _take(self, track: Track, event: WorkflowEvent) -> None:
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
                    self._remember(track, finished=False, new_step=True)
            case EventKind.STEP_STARTED:
                self._began(track, event)
            case EventKind.STEP_FINISHED:
                self._finished(track, event)
            case EventKind.WORKFLOW_ENDED:
                self._ended(track)

    def _remember(self, track: Track, finished: bool, new_step: bool) -> None:
        assert track.model is not None
        track.remember(track.model.moment(track.situation(finished)), new_step)

    def _began(self, track: Track, event: WorkflowEvent) -> None:
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
        track.began(label, event.call_site, model.pieces.known(event.pieces, event.workflow))
        self._remember(track, finished=False, new_step=True)

    def _finished(self, track: Track, event: WorkflowEvent) -> None:
        track.words, track.hidden = array("I", event.words), event.hidden
        if (
            track.model is not None and event.step == track.number and len(track.moments[-1]) == 1
        ):  # else a branch beside the latest step
            self._remember(track, finished=True, new_step=False)

    def _ended(self, track: Track) -> None:
        if track.model is None:
            return
        self._came(track, track.model, END)
        if self.learning and track.settled:
            for behind in range(1, self._config.horizon):
                waiting = [(step + behind, moment) for step, moment in track.waiting() if step + behind < self._config.horizon]
                if waiting:
                    track.model.came(waiting, END)
            track.model.ended(track.whole, track.labels)

    def _came(self, track: Track, model: WorkloadModel, label: str) -> None:
        if not self.learning or not track.settled:
            return
        waiting = list(track.waiting())
        if waiting:
            model.came(waiting, label)
        if track.agents:
            model.predictability.seen(track.agents[-1], label)
        self._unlearnt[model] = None
