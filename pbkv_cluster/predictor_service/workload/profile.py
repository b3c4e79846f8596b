"""What the first steps of one workload's workflows look like."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pbkv_cluster.predictor_service.workload.evidence import STEPS, StepEvidence

K = TypeVar("K")

MIN_BACKGROUND = 0.1  # θ1, and the least θ0: see `profiles`

_MIN_TEMPLATE_SHARE = 0.25  # of the workflows, for a feature to be part of the template
_MIN_AGENT_SHARE = 0.01
_MAX_FEATURE_SHARE = 0.97
_DOUBT = 3.0  # imaginary workflows without any feature: most of what the first workflow has is its task's
_RANDOM_AGENT = 0.05  # probability of an agent's name if nothing is known
_MAX_FEATURES = 512  # for each step
_MAX_AGENTS = 1024
_MAX_WORKFLOWS = 1024  # beyond, counts are halved


class WorkloadProfile:
    """Counts over the workflows of one workload, and the template that follows from them."""

    def __init__(self) -> None:
        self.workflows = 0.0
        self.rebuilt_at = 0.0  # `workflows` when the template was last chosen
        self.steps = [0.0] * STEPS  # workflows that had such a step
        self.features: list[dict[int, float]] = [{} for _ in range(STEPS)]
        self.agents: list[dict[str, float]] = [{} for _ in range(STEPS)]
        self.all_agents: dict[str, float] = {}
        self.calls = 0.0  # of all agents
        self.called_once = 0  # agents
        self.absence = [0.0] * STEPS  # score of a step that has nothing of the template
        self.template: list[tuple[int, ...]] = [()] * STEPS

    def learn(self, steps: Sequence[StepEvidence]) -> None:
        """Counts the first steps of one more workflow."""
        self.workflows += 1.0
        for position, agent, features in steps:
            if position >= 0:
                self.steps[position] += 1.0
                counts = self.features[position]
                for feature in features:
                    counts[feature] = counts.get(feature, 0.0) + 1.0
                _count(self.agents[position], agent)
            count = _count(self.all_agents, agent)
            self.calls += 1.0
            self.called_once += (count <= 1.0) - (1.0 < count <= 2.0)
        if self.workflows > _MAX_WORKFLOWS:
            self._halve()

    def prior(self) -> float:
        """Score of a workflow of which no step is known: the logarithm of the workflows that there were."""
        return math.log(max(self.workflows, 1.0))

    def agent_score(self, position: int, agent: str) -> float:
        """Log likelihood ratio of an agent's name at a step."""
        share = (1.0 - self.novelty()) * self.all_agents.get(agent, 0.0) / self.calls
        if position >= 0:
            here = self.agents[position]
            share = (here.get(agent, 0.0) + 2.0 * share) / (self.steps[position] + 2.0)
        return math.log(max(share, _MIN_AGENT_SHARE) / _RANDOM_AGENT)

    def novelty(self) -> float:
        """Probability of an agent never seen before: the share of calls whose agent was called once."""
        return (self.called_once + 0.5) / (self.calls + 1.0)

    def choose_template(self) -> list[dict[int, float]]:
        """Chooses the template anew. Returns its features' gains for each step, with no background taken off yet."""
        self.rebuilt_at = self.workflows
        self.recount_agents()
        gains: list[dict[int, float]] = []
        for position, counts in enumerate(self.features):
            if len(counts) > _MAX_FEATURES:
                least = _MIN_TEMPLATE_SHARE * self.steps[position]
                newest = set(list(counts)[-_MAX_FEATURES // 2 :])
                counts = {key: count for key, count in counts.items() if key in newest or count >= least}
                self.features[position] = dict(list(counts.items())[-_MAX_FEATURES:])
            gain, absence = {}, 0.0
            for feature, count in self.features[position].items():
                share = count / (self.steps[position] + _DOUBT)
                if share >= _MIN_TEMPLATE_SHARE:
                    share = min(share, _MAX_FEATURE_SHARE)
                    missing = math.log((1.0 - share) / (1.0 - MIN_BACKGROUND))
                    gain[feature] = math.log(share) - missing
                    absence += missing
            gains.append(gain)
            self.absence[position] = absence
            self.template[position] = tuple(gain)
        return gains

    def recount_agents(self) -> None:
        """Sums up the agents again, since some may have left."""
        self.calls = sum(self.all_agents.values())
        self.called_once = sum(count <= 1.0 for count in self.all_agents.values())

    def dump(self) -> dict[str, Any]:
        """The counts. The template follows from them."""
        return {
            "workflows": self.workflows,
            "steps": self.steps,
            "features": [[[key, count] for key, count in counts.items()] for counts in self.features],
            "agents": self.agents,
            "all_agents": self.all_agents,
        }

    @classmethod
    def restore(cls, state: Any) -> "WorkloadProfile":
        """A profile without a template.

        Raises:
            ValueError: `state` is not what `dump` gives.
        """
        profile = cls()
        try:
            profile.workflows = _number(state["workflows"])
            profile.steps = [_number(count) for count in state["steps"]]
            profile.features = [{int(key): _number(count) for key, count in table} for table in state["features"]]
            profile.agents = [_counts_by_name(table) for table in state["agents"]]
            profile.all_agents = _counts_by_name(state["all_agents"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a workload's profile does not fit: {error!r}") from error
        if not len(profile.steps) == len(profile.features) == len(profile.agents) == STEPS or not profile.all_agents:
            raise ValueError("a workload's profile is of other steps")
        return profile

    def _halve(self) -> None:
        self.workflows /= 2
        self.steps = [count / 2 for count in self.steps]
        self.features = [_halved(table) for table in self.features]
        self.agents = [_halved(table) for table in self.agents]
        self.all_agents = _halved(self.all_agents)
        self.rebuilt_at = 0.0


def _halved(table: dict[K, float]) -> dict[K, float]:
    return {key: count / 2 for key, count in table.items() if count > 1.0}


def _count(table: dict[str, float], name: str) -> float:
    count = table[name] = table.pop(name, 0.0) + 1.0
    if len(table) > _MAX_AGENTS:
        del table[next(iter(table))]
    return count


def _number(value: Any) -> float:
    if not isinstance(value, float) or not 0.0 <= value < 1e9:
        raise ValueError(f"a count must not be negative, got {value!r}")
    return value


def _counts_by_name(table: Any) -> dict[str, float]:
    return {str(name): _number(count) for name, count in table.items()}
