"""The workloads that are known, and of which of them each workflow is.

A workflow is of the workload that its client names; where it names none, of the one that it is recognised as, or else of a new
one without a name. That is settled once its first steps are known. Until then its track holds its events, takes them as those
of the likeliest workload, and takes them again when that changes. A workload without a name gets the one by which a client
calls it first.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.workflow.prediction_state import PredictionState
from pbkv_cluster.predictor_service.workload.recognition import STEPS, Recognition, Scores, evidence_of
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel

_MOST_HELD = 16 * STEPS  # events of a workflow whose workload is not settled


class Workloads:
    """A bounded number of workloads, each with its model."""

    def __init__(self, config: PredictorConfig, experts: Sequence[str], most: int, tracks: Collection[PredictionState]) -> None:
        """Args:
            config: of the models.
            experts: names of those of each model.
            most: workloads; beyond, the one that was longest unused leaves.
            tracks: of all open workflows: they follow when their workload gets another name.

        Raises:
            InvalidArgument: there is no expert of such a name.
        """
        self._config = config
        self._experts = experts
        self._most = most
        self._tracks = tracks
        self._models: OrderedDict[str, WorkloadModel] = OrderedDict()  # by workload, longest unused first
        self._recognition = Recognition()
        self._unnamed: dict[str, None] = {}  # workloads that no client has named yet
        self._opened = 0  # of these, ever
        WorkloadModel(config, experts)  # an unknown expert is refused at once

    def all(self) -> Collection[WorkloadModel]:
        """The models."""
        return self._models.values()

    def place(self, track: PredictionState, event: WorkflowEvent, learning: bool) -> list[WorkflowEvent]:
        """Finds the workload and the model of a workflow that has sent another event.

        Args:
            track: of the workflow.
            event: not taken yet.
            learning: new workloads are opened, and it is learnt what they look like.

        Returns:
            The events that the track takes now, in order: none, this one, or others again that were of another workload.
        """
        if event.workload and event.workload != track.name:
            self._named(track, event.workload)
        self._weigh(track, event, learning)
        if not track.settled:
            return self._guess(track, event, learning)
        held, track.held = track.held, []
        return [*held, event]

    def dump(self) -> dict[str, Any]:
        """What is known, without the open workflows."""
        return {
            "workloads": {name: model.dump() for name, model in self._models.items()},
            "recognition": self._recognition.dump(),
            "unnamed": list(self._unnamed),
            "opened": self._opened,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Replaces what is known by what `dump` gave.

        Raises:
            ValueError: the state does not fit; all is as before.
        """
        workloads = state.get("workloads")
        if not isinstance(workloads, dict):
            raise ValueError("it holds no workloads")
        models: OrderedDict[str, WorkloadModel] = OrderedDict()
        for name, each in workloads.items():
            models[name] = WorkloadModel(self._config, self._experts)
            models[name].restore(each if isinstance(each, dict) else {})
        recognised, unnamed, opened = state.get("recognition"), state.get("unnamed"), state.get("opened")
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
        self._models, self._recognition = models, recognition
        self._unnamed, self._opened = dict.fromkeys(unnamed), opened

    # --- of which workload a workflow is ---

    def _named(self, track: PredictionState, name: str) -> None:
        """The client names a workflow's workload."""
        track.name = name
        self._unnamed.pop(name, None)
        if track.settled and track.workload in self._unnamed and name not in self._models:
            self._rename(track.workload, name)
            track.workload = name
        elif name in self._recognition or not self._unnamed:
            self._settle(track, name)
        elif track.settled:  # of another workload: it may be one that has been known without a name
            _move(track, "", None)
            track.settled, track.evidence = False, Scores()

    def _weigh(self, track: PredictionState, event: WorkflowEvent, learning: bool) -> None:
        """Takes in what one of the first steps tells of the workload."""
        if track.evidence is None:
            return
        if event.kind is EventKind.WORKFLOW_ENDED and track.settled:
            self._decide(track, learning)
        if event.kind is not EventKind.STEP_STARTED:
            return
        step = evidence_of(event.step, event.agent, event.call_site, event.pieces)
        if track.settled:
            track.evidence.steps.append(step)
        else:
            self._recognition.seen(track.evidence, step)
        if len(track.evidence.steps) == STEPS:
            self._decide(track, learning)

    def _guess(self, track: PredictionState, event: WorkflowEvent, learning: bool) -> list[WorkflowEvent]:
        """Takes a workflow for one of the workload that seems likeliest; the events that its track is to take for that."""
        track.held.append(event)
        if event.kind is EventKind.WORKFLOW_ENDED or len(track.held) > _MOST_HELD:
            self._decide(track, learning)
            held, track.held = track.held, []
            return held if track.settled else []  # else no step has begun
        workload = ""
        if track.evidence is not None:
            workload = self._recognition.best(track.evidence, self._unnamed if track.name else None)
        if workload == track.workload:
            return [event]
        _move(track, workload, self._models.get(workload))
        return list(track.held)

    def _decide(self, track: PredictionState, learning: bool) -> None:
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
            elif not workload and learning:
                workload = self._open()
            self._settle(track, workload)
        if learning and track.workload in self._models:
            self._recognition.learn(track.workload, evidence.steps)

    def _settle(self, track: PredictionState, workload: str) -> None:
        _move(track, workload, self._model(workload) if workload else None)
        track.settled = True

    # --- which workloads there are ---

    def _model(self, workload: str) -> WorkloadModel:
        model = self._models.get(workload)
        if model is None:
            model = self._models[workload] = WorkloadModel(self._config, self._experts)
            if len(self._models) > self._most:
                self._leave(next(iter(self._models)))
        self._models.move_to_end(workload)
        return model

    def _open(self) -> str:
        """A name for a workload that nobody has named."""
        if len(self._unnamed) >= max(1, self._most // 2):
            self._leave(next(name for name in self._models if name in self._unnamed))
        self._opened += 1
        name = f"unnamed-{self._opened}"
        self._unnamed[name] = None
        return name

    def _rename(self, workload: str, name: str) -> None:
        self._models[name] = self._models.pop(workload)
        self._recognition.rename(workload, name)
        self._unnamed.pop(workload, None)
        for track in self._tracks:
            if track.workload == workload:
                track.workload = name

    def _leave(self, workload: str) -> None:
        del self._models[workload]
        self._unnamed.pop(workload, None)
        self._recognition.forget(workload)


def _move(track: PredictionState, workload: str, model: WorkloadModel | None) -> None:
    """Forgets what a workflow was to another workload."""
    track.restart()
    track.workload, track.model, track.own = workload, model, {}
    if track.held:
        track.sequence = track.held[0].sequence - 1
