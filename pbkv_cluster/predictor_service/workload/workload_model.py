"""All that is learnt of one workload: its labels, its experts, and how they are joined."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS, Expert, Floats, Lesson
from pbkv_cluster.predictor_service.experts.mixture import Mixture
from pbkv_cluster.predictor_service.training.jobs import Trainer
from pbkv_cluster.predictor_service.workflow.situation import Situation
from pbkv_cluster.predictor_service.workload.labels import Labels
from pbkv_cluster.predictor_service.workload.piece_counts import PieceCounts
from pbkv_cluster.predictor_service.workload.predictability import Predictability

_MOST_LESSONS = 256  # that wait to be learnt
_ASKED = 1024  # that are forecast at a time: experts take some ten times the memory of what comes of it
_LESSONS = 16  # that are learnt at a time: a millisecond or two


class Moment:
    """A situation that was or may be forecast: what each expert reads of it."""

    __slots__ = ("came", "features", "phase")

    def __init__(self, features: tuple[Any, ...], phase: int) -> None:
        self.features = features
        self.phase = phase  # 0 before the output of the latest step was known, 1 after
        self.came: list[str] = []  # labels of the steps behind it


class WorkloadModel:
    """One workload's. Lessons wait until `learn`, so that a forecast need not wait for them."""

    def __init__(self, config: PredictorConfig, experts: Sequence[str]) -> None:
        self._config = config
        self._names = tuple(experts)
        self._lessons: list[Moment] = []
        self._start(Labels(config.max_agents))

    def _start(self, labels: Labels) -> None:
        self.labels = labels
        self.experts: list[Expert[Any]] = [EXPERTS.get(name)(self._config, labels) for name in self._names]
        self.mixture = Mixture(len(self.experts), self._config.horizon)
        self.pieces = PieceCounts()
        self.predictability = Predictability()
        self.wants_whole = any(expert.wants_whole for expert in self.experts)

    def moment(self, situation: Situation) -> Moment:
        """What a situation looks like to the experts."""
        return Moment(tuple([expert.features(situation) for expert in self.experts]), int(situation.finished))

    def label(self, agent: str, workflow: str, site: str, own: dict[str, str]) -> str:
        """See `Labels.label`."""
        label = self.labels.label(agent, workflow, site, own)
        self._fit()
        return label

    def declare(self, agents: Collection[str], own: dict[str, str]) -> None:
        """See `Labels.declare`."""
        self.labels.declare(agents, own)
        self._fit()

    def _fit(self) -> None:
        if len(self.labels) > self._config.max_agents + 1:
            self.learn()  # before columns change
            kept = self.labels.overflow()
            assert kept is not None
            for expert in self.experts:
                expert.keep(kept)

    def forecast(self, moments: Sequence[Moment]) -> Floats:
        """Calibrated probabilities [moments, K, columns]; those of a step add up to 1, or are all 0: nobody knows."""
        phases = np.array([moment.phase for moment in moments])
        parts = range(0, len(moments), _ASKED)
        joint = [self.mixture.join(self.ask(moments[at : at + _ASKED]), phases[at : at + _ASKED]) for at in parts]
        return joint[0] if len(joint) == 1 else np.concatenate(joint)

    def ask(self, moments: Sequence[Moment]) -> Floats:
        """What each expert says of moments: probabilities [moments, experts, K, columns]."""
        said = np.empty((len(moments), len(self.experts), self._config.horizon, len(self.labels)), dtype=np.float32)
        for number, expert in enumerate(self.experts):
            said[:, number] = expert.forecast([moment.features[number] for moment in moments])
        return said

    def came(self, moments: Iterable[tuple[int, Moment]], label: str) -> None:
        """Tells what came of moments, each at one of its K steps, from 0: the lowest that it does not know yet."""
        for step, moment in moments:
            if step != len(moment.came):  # it was not told of all: there was no learning for a time
                continue
            moment.came.append(label)
            if len(moment.came) == self._config.horizon:
                self._lessons.append(moment)
        if len(self._lessons) > _MOST_LESSONS:
            self.learn_some()  # and no more at once: forecasts wait

    def learn(self) -> None:
        """Takes in all that waits."""
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        """Takes in a few of the lessons that wait: moments of which all that they forecast has come.

        First experts are weighed by what they say of them, then they learn what came. Returns whether more waits.
        """
        lessons, self._lessons = self._lessons[:_LESSONS], self._lessons[_LESSONS:]
        if lessons:
            targets = [tuple(map(self.labels.column, moment.came)) for moment in lessons]
            self.mixture.seen(self.ask(lessons), np.array([moment.phase for moment in lessons]), np.array(targets))
            for number, expert in enumerate(self.experts):
                each = zip(lessons, targets, strict=True)
                expert.learn([Lesson(moment.features[number], target) for moment, target in each])
        return bool(self._lessons)

    def train(self, trainer: Trainer, now: bool = False) -> None:
        """Has experts trained for whom it is time, or all of them `now`."""
        for expert in self.experts:
            job = expert.training_due(now)
            if job is not None:
                trainer.submit(job, expert.trained)

    def ended(self, moments: Sequence[tuple[int, Moment]], labels: Sequence[str]) -> None:
        """A workflow has ended.

        Args:
            moments: all of them, in order, each with how many steps had begun.
            labels: of its steps.
        """
        columns = [self.labels.column(label) for label in labels] + [0] * self._config.horizon
        targets = [tuple(columns[begun : begun + self._config.horizon]) for begun, _ in moments]
        for number, expert in enumerate(self.experts):
            if expert.wants_whole:
                each = zip(moments, targets, strict=True)
                expert.ended([Lesson(moment.features[number], target) for (_, moment), target in each])

    def dump(self) -> dict[str, Any]:
        """What has been learnt, with all that waits."""
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
        ValueError: the state does not fit; the model is of no use any more.
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
