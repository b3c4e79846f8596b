"""All that is learnt of one workload: its labels, its experts, and how they are joined."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS, Expert, Floats, Lesson
from pbkv_cluster.predictor_service.labels import Labels
from pbkv_cluster.predictor_service.mixture import Mixture
from pbkv_cluster.predictor_service.piece_counts import PieceCounts
from pbkv_cluster.predictor_service.predictability import Predictability
from pbkv_cluster.predictor_service.situation import Situation
from pbkv_cluster.predictor_service.training import Trainer

_MOST_LESSONS = 256  # that wait to be learnt
_MOST_TOLD = 8 * _MOST_LESSONS  # steps that came, which wait for the same
_MOMENTS = 48  # that are told what came at a time: they count together, as if the experts' weights were the same for all
_ASKED = 1024  # that are forecast at a time: experts take some ten times the memory of what comes of it
_LESSONS = 16  # that are learnt at a time: a millisecond or two


class Moment:
    """A situation that was or may be forecast: what each expert reads of it, and what it said."""

    __slots__ = ("came", "features", "outputs", "phase", "version")

    def __init__(self, features: list[Any], phase: int) -> None:
        self.features = features
        self.phase = phase  # 0 before the output of the latest step was known, 1 after
        self.outputs: Floats | None = None  # [experts, K, columns]
        self.version = 0  # of the columns in `outputs`
        self.came: list[str] = []  # labels of the steps behind it


class WorkloadModel:
    """One workload's. Lessons wait until `learn`, so that a forecast need not wait for them."""

    def __init__(self, config: PredictorConfig, experts: Sequence[str]) -> None:
        self._config = config
        self._names = tuple(experts)
        self._version = 0  # grows when columns are renumbered
        self._told: list[tuple[Moment, int, str]] = []  # what came of moments, and at which of their steps
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
        return Moment([expert.features(situation) for expert in self.experts], int(situation.finished))

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
            self._version += 1

    def forecast(self, moments: Sequence[Moment]) -> Floats:
        """Calibrated probabilities [moments, K, columns]; those of a step add up to 1, or are all 0: nobody knows."""
        self._ask(moments)
        outputs = np.zeros((len(moments), len(self.experts), self._config.horizon, len(self.labels)), dtype=np.float32)
        for at, moment in enumerate(moments):
            assert moment.outputs is not None
            outputs[at, :, :, : moment.outputs.shape[2]] = moment.outputs
        return self.mixture.join(outputs, np.array([moment.phase for moment in moments]))

    def came(self, moments: Iterable[tuple[int, Moment]], label: str) -> None:
        """Tells what came of moments, each at one of its K steps, from 0: the lowest that it does not know yet."""
        for step, moment in moments:
            self._told.append((moment, step, label))
            moment.came.append(label)
            if len(moment.came) == self._config.horizon:
                self._lessons.append(moment)
        if len(self._lessons) > _MOST_LESSONS or len(self._told) > _MOST_TOLD:
            while self._told:
                self._weigh()
            if self._lessons:
                self._teach()  # and no more at once: forecasts wait

    def learn(self) -> None:
        """Takes in all that waits."""
        while self.learn_some():
            pass

    def learn_some(self) -> bool:
        """Takes in a part of what waits: weighs the experts by what has come, or hands them a few lessons.

        Lessons are moments of which all that they forecast has come. Returns whether more waits.
        """
        if self._told:
            self._weigh()
        elif self._lessons:
            self._teach()
        return bool(self._told or self._lessons)

    def _weigh(self) -> None:
        told, self._told = self._told[:_MOMENTS], self._told[_MOMENTS:]
        self._ask(dict.fromkeys(moment for moment, _, _ in told))
        said = np.zeros((len(told), len(self.experts), len(self.labels)), dtype=np.float32)
        for at, (moment, step, _) in enumerate(told):
            assert moment.outputs is not None
            said[at, :, : moment.outputs.shape[2]] = moment.outputs[:, step]
        columns = [self.labels.column(label) for _, _, label in told]
        self.mixture.seen(said, [moment.phase for moment, _, _ in told], [step for _, step, _ in told], columns)

    def _teach(self) -> None:
        lessons, self._lessons = self._lessons[:_LESSONS], self._lessons[_LESSONS:]
        targets = [tuple(map(self.labels.column, moment.came)) for moment in lessons]
        for number, expert in enumerate(self.experts):
            each = zip(lessons, targets, strict=True)
            expert.learn([Lesson(moment.features[number], target) for moment, target in each])

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

    def _ask(self, moments: Iterable[Moment]) -> None:
        """Has the experts forecast the moments of which nothing is known, or no longer fits the columns."""
        unknown = [moment for moment in moments if moment.outputs is None or moment.version != self._version]
        for start in range(0, len(unknown), _ASKED):
            part = unknown[start : start + _ASKED]
            outputs = np.empty((len(part), len(self.experts), self._config.horizon, len(self.labels)), dtype=np.float32)
            for at, expert in enumerate(self.experts):
                outputs[:, at] = expert.forecast([moment.features[at] for moment in part])
            for moment, output in zip(part, outputs, strict=True):
                moment.outputs, moment.version = output.copy(), self._version  # else one moment would keep all of them

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
