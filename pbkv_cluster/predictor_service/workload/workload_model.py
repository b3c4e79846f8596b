"""All that is learnt of one workload: its labels, its experts, and the mixture that joins them."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS, Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.mixture import Mixture, Phase
from pbkv_cluster.predictor_service.training.jobs import Trainer
from pbkv_cluster.predictor_service.workflow.situation import Situation
from pbkv_cluster.predictor_service.workload.forecast_scores import ForecastScores, RecentAccuracy
from pbkv_cluster.predictor_service.workload.moment import Moment
from pbkv_cluster.predictor_service.workload.piece_counts import PieceCounts
from pbkv_cluster.predictor_service.workload.predictability import Predictability

_MAX_WAITING = 256  # moments that wait to be learnt from
_FORECAST_BATCH = 1024  # moments: what experts compute with takes some ten times the memory of their forecasts
_LEARNING_BATCH = 16  # moments: a millisecond or two


class WorkloadModel:
    """Forecasts and learns for one workload. Learning waits for `learn`, so that forecasts need not wait for it."""

    def __init__(self, config: PredictorConfig, experts: Sequence[str], scores: ForecastScores | None = None) -> None:
        """Args:
            config: of the experts.
            experts: their names.
            scores: those of the whole predictor, which forecasts of this workload count in, too.

        Raises:
            InvalidArgument: there is no expert of such a name.
        """
        self._config = config
        self._names = tuple(experts)
        self._scores = scores or ForecastScores()
        self.accuracy = RecentAccuracy()
        self._waiting: list[Moment] = []  # all outcomes known, not learnt from yet
        self._start(Labels(config.max_agents))

    def _start(self, labels: Labels) -> None:
        self.labels = labels
        self.experts: list[Expert[Any]] = [EXPERTS.get(name)(self._config, labels) for name in self._names]
        self.mixture = Mixture(len(self.experts), self._config.horizon)
        self.pieces = PieceCounts()
        self.predictability = Predictability()
        self.learns_workflows = any(expert.learns_workflows for expert in self.experts)

    def moment(self, situation: Situation) -> Moment:
        """A situation as the experts read it."""
        features = tuple([expert.features(situation) for expert in self.experts])
        return Moment(features, Phase.AFTER_OUTPUT if situation.finished else Phase.BEFORE_OUTPUT)

    def label(self, agent: str, workflow: str, call_site: str, own: dict[str, str], counted: bool = False) -> str:
        """See `Labels.label`."""
        label = self.labels.label(agent, workflow, call_site, own, counted)
        self._limit_labels()
        return label

    def declare(self, agents: Collection[str], own: dict[str, str]) -> None:
        """See `Labels.declare`."""
        self.labels.declare(agents, own)
        self._limit_labels()

    def _limit_labels(self) -> None:
        if len(self.labels) > self._config.max_agents + 1:
            self.learn()  # before columns change
            kept = self.labels.overflow()
            assert kept is not None
            for expert in self.experts:
                expert.renumber(kept)

    def forecast(self, moments: Sequence[Moment]) -> Floats:
        """Calibrated probabilities [moments, K, columns]; those of a step add up to 1, or are all 0 if no expert knows."""
        phases = np.fromiter((moment.phase for moment in moments), np.intp, len(moments))
        starts = range(0, len(moments), _FORECAST_BATCH)
        joint = [
            self.mixture.join(self.expert_forecasts(moments[at : at + _FORECAST_BATCH]), phases[at : at + _FORECAST_BATCH])
            for at in starts
        ]
        return joint[0] if len(joint) == 1 else np.concatenate(joint)

    def expert_forecasts(self, moments: Sequence[Moment]) -> Floats:
        """What each expert forecasts by itself: probabilities [moments, experts, K, columns]."""
        found = np.empty((len(moments), len(self.experts), self._config.horizon, len(self.labels)), dtype=np.float32)
        for number, expert in enumerate(self.experts):
            found[:, number] = expert.forecast([moment.features[number] for moment in moments])
        return found

    def add_outcome(self, moments: Iterable[tuple[int, Moment]], label: str, learnt: bool = False) -> None:
        """Adds an outcome to the moments that had forecast it.

        Args:
            moments: each with its forecast step, from 0, that the outcome belongs to.
            label: of the step that started, or END.
            learnt: moments that are complete with it have been learnt from, before a restart.
        """
        for step, moment in moments:
            if step != len(moment.outcomes):  # some are missing: learning was off for a time
                continue
            moment.outcomes.append(label)
            if len(moment.outcomes) == self._config.horizon and not learnt:
                self._waiting.append(moment)
        if len(self._waiting) > _MAX_WAITING:
            self.learn_some()  # one batch only: forecasts wait for it

    def learn(self) -> None:
        """Learns from all moments that wait."""
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        """Learns from a few of the moments that wait. Returns whether more are left.

        The experts are asked for forecasts first, by which the mixture weighs them, and then learn the outcomes.
        """
        moments, self._waiting = self._waiting[:_LEARNING_BATCH], self._waiting[_LEARNING_BATCH:]
        if moments:
            targets = [tuple(map(self.labels.column, moment.outcomes)) for moment in moments]
            phases = np.fromiter((moment.phase for moment in moments), np.intp, len(moments))
            forecasts, outcomes = self.expert_forecasts(moments), np.array(targets)
            next_step = self.mixture.join(np.ascontiguousarray(forecasts[:, :, :1]), phases)
            self.accuracy.add(self._scores.add(next_step[:, 0], outcomes[:, 0]))
            self.mixture.update(forecasts, phases, outcomes)
            for number, expert in enumerate(self.experts):
                each = zip(moments, targets, strict=True)
                expert.learn([TrainingExample(moment.features[number], target) for moment, target in each])
        return bool(self._waiting)

    def train(self, trainer: Trainer, now: bool = False) -> None:
        """Submits the training jobs of the experts that are due; with `now`, of all that have anything to learn."""
        for expert in self.experts:
            job = expert.training_due(now)
            if job is not None:
                trainer.submit(job, expert.training_done)

    def learn_workflow(self, moments: Sequence[tuple[int, Moment]], labels: Sequence[str]) -> None:
        """Has the experts that want them learn from all moments of a workflow that has ended.

        Args:
            moments: in order, each with the number of steps started by then.
            labels: of the workflow's steps.
        """
        columns = [self.labels.column(label) for label in labels] + [0] * self._config.horizon
        targets = [tuple(columns[started : started + self._config.horizon]) for started, _ in moments]
        for number, expert in enumerate(self.experts):
            if expert.learns_workflows:
                each = zip(moments, targets, strict=True)
                expert.learn_workflow([TrainingExample(moment.features[number], target) for (_, moment), target in each])

    def dump(self) -> dict[str, Any]:
        """What has been learnt; learns from all moments that wait first."""
        self.learn()
        return {
            "labels": self.labels.dump(),
            "experts": {name: expert.dump() for name, expert in zip(self._names, self.experts, strict=True)},
            "mixture": self.mixture.dump(),
            "pieces": self.pieces.dump(),
            "predictability": self.predictability.dump(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state does not fit; the model must not be used any more.
        """
        self._start(Labels.restore(_part(state, "labels"), self._config.max_agents))
        experts = _part(state, "experts")
        if set(experts) != set(self._names):
            raise ValueError(f"it was learnt by {', '.join(sorted(experts))}, not by {', '.join(sorted(self._names))}")
        for name, expert in zip(self._names, self.experts, strict=True):
            try:
                expert.restore(_part(experts, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        self.mixture.restore(_part(state, "mixture"))
        self.pieces.restore(_part(state, "pieces"))
        self.predictability.restore(_part(state, "predictability"))


def _part(state: dict[str, Any], name: str) -> dict[str, Any]:
    part = state.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{name} is missing")
    return part
