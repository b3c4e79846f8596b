"""Which workload a workflow is of, where its client does not say: told from its first agents and prompts.

Each known workload is scored by a log likelihood ratio against a workload that nobody knows yet; if none is above 0, it is such
a one. Features of a step (pieces of its prompt, its call site, words of its agent's name) that a fair share θ of a workload's
workflows have at that step are its template; one that is there adds ln(θ / θ0), one that is missing ln((1 - θ) / (1 - θ1)).
θ0 is the share of other workloads that have it in their template, so that what a framework writes into every prompt tells
little; θ1 = 0.1.
Agents add the logarithm of their share over that of a name at random; ones never seen before, that of the share of such in
the past (Good and Turing). Workloads count in proportion to the workflows that they have had (the Chinese restaurant process).
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

K = TypeVar("K")

STEPS = 3  # of a workflow, by which it is recognised

_TEMPLATE = 0.25  # share of workflows from which on a feature is of the template
_SHARES = (0.01, 0.97)
_DOUBT = 3.0  # workflows that are taken to have had no feature: what the first one had is mostly its task's
_BACKGROUND = 0.1  # θ1; and θ0 at the least
_MOST_BACKGROUND = 0.5  # θ0 at the most
_RANDOM_AGENT = 0.05  # chance of an agent's name where nothing speaks for it
_MOST_FEATURES = 512  # of a workload and step
_MOST_AGENTS = 1024
_MOST_WORKFLOWS = 1024  # of a workload; beyond, counts are halved
_REBUILT_BY = 1.5  # growth of a workload, from which on its template is chosen anew

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class Evidence(NamedTuple):
    """One step."""

    position: int  # from 0, or -1: not one of the first steps
    agent: str
    features: tuple[int, ...]


def evidence_of(step: int, agent: str, call_site: str, pieces: tuple[int, ...]) -> Evidence:
    """What a step tells of its workload.

    Args:
        step: its number, from 0.
        agent: its name.
        call_site: where the client named it.
        pieces: of its prompt.
    """
    return Evidence(step if step < STEPS else -1, agent, (*set(pieces), *_names(agent, call_site)))


@lru_cache(maxsize=4096)
def _names(agent: str, call_site: str) -> tuple[int, ...]:
    words = {crc32(b"word\0" + word.lower().encode()) for word in _WORD.findall(agent)}
    return (*sorted(words), *([crc32(b"site\0" + call_site.encode())] if call_site else ()))


class _Profile:
    """What is known of one workload."""

    def __init__(self) -> None:
        self.workflows = 0.0
        self.rebuilt_at = 0.0
        self.steps = [0.0] * STEPS  # workflows that had such a step
        self.features: list[dict[int, float]] = [{} for _ in range(STEPS)]
        self.agents: list[dict[str, float]] = [{} for _ in range(STEPS)]
        self.all_agents: dict[str, float] = {}
        self.calls = 0.0  # of all agents
        self.once = 0  # agents that were called once
        self.missing = [0.0] * STEPS  # score of a step that has nothing of the template
        self.template: list[tuple[int, ...]] = [()] * STEPS

    def learn(self, steps: Sequence[Evidence]) -> None:
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
            self.once += (count <= 1.0) - (1.0 < count <= 2.0)
        if self.workflows > _MOST_WORKFLOWS:
            self._halve()

    def prior(self) -> float:
        return math.log(max(self.workflows, 1.0))

    def agent_score(self, position: int, agent: str) -> float:
        share = (1.0 - self.novelty()) * self.all_agents.get(agent, 0.0) / self.calls
        if position >= 0:
            here = self.agents[position]
            share = (here.get(agent, 0.0) + 2.0 * share) / (self.steps[position] + 2.0)
        return math.log(max(share, _SHARES[0]) / _RANDOM_AGENT)

    def novelty(self) -> float:
        """Chance of an agent that was never seen: the share of calls of agents that were called once."""
        return (self.once + 0.5) / (self.calls + 1.0)

    def choose(self) -> list[dict[int, float]]:
        """Chooses the template anew; gains of its features by step, before their background is taken off."""
        self.rebuilt_at = self.workflows
        self.recount()
        gains: list[dict[int, float]] = []
        for position, counts in enumerate(self.features):
            if len(counts) > _MOST_FEATURES:
                least = _TEMPLATE * self.steps[position]
                newest = set(list(counts)[-_MOST_FEATURES // 2 :])
                counts = {key: count for key, count in counts.items() if key in newest or count >= least}
                self.features[position] = dict(list(counts.items())[-_MOST_FEATURES:])
            gain, missing = {}, 0.0
            for feature, count in self.features[position].items():
                share = count / (self.steps[position] + _DOUBT)
                if share >= _TEMPLATE:
                    share = min(share, _SHARES[1])
                    absent = math.log((1.0 - share) / (1.0 - _BACKGROUND))
                    gain[feature] = math.log(share) - absent
                    missing += absent
            gains.append(gain)
            self.missing[position] = missing
            self.template[position] = tuple(gain)
        return gains

    def recount(self) -> None:
        """Sums up the agents: some may have left."""
        self.calls = sum(self.all_agents.values())
        self.once = sum(count <= 1.0 for count in self.all_agents.values())

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
    if len(table) > _MOST_AGENTS:
        del table[next(iter(table))]
    return count


class Scores:
    """Of one workflow, as its steps come."""

    __slots__ = ("by_workload", "steps")

    def __init__(self) -> None:
        self.steps: list[Evidence] = []
        self.by_workload: dict[str, float] = {}


class Recognition:
    """Profiles of the workloads that are known."""

    def __init__(self) -> None:
        self._profiles: dict[str, _Profile] = {}
        self._holders: list[dict[int, dict[str, float]]] = [{} for _ in range(STEPS)]  # gains by feature and workload
        self._callers: dict[str, set[str]] = {}  # workloads by agent
        self._logs: list[float] = []
        self._strangers: dict[str, float] = {}  # scores of an agent that a workload does not know

    def __contains__(self, workload: str) -> bool:
        return workload in self._profiles

    def __len__(self) -> int:
        """Workloads that are known."""
        return len(self._profiles)

    def seen(self, scores: Scores, step: Evidence) -> None:
        """Adds a step of a workflow to its scores."""
        scores.steps.append(step)
        if scores.by_workload.keys() == self._profiles.keys():
            self._add(scores.by_workload, step)
            return
        scores.by_workload = {name: profile.prior() for name, profile in self._profiles.items()}
        for each in scores.steps:
            self._add(scores.by_workload, each)

    def best(self, scores: Scores, among: Mapping[str, object] | None = None) -> str:
        """The workload that fits best; "" if none fits.

        Args:
            scores: of the workflow.
            among: those to choose from; by default all.
        """
        found, highest = "", 0.0
        for name, score in scores.by_workload.items():
            if score > highest and name in self._profiles and (among is None or name in among):
                found, highest = name, score
        return found

    def learn(self, workload: str, steps: Sequence[Evidence]) -> None:
        """A workflow's first steps, once it is known of which workload it is."""
        profile = self._profiles.get(workload)
        if profile is None:
            profile = self._profiles[workload] = _Profile()
        known = profile.all_agents.keys() & {step.agent for step in steps}
        profile.learn(steps)
        for step in steps:
            if step.agent not in known:
                self._callers.setdefault(step.agent, set()).add(workload)
        self._strangers[workload] = math.log(profile.novelty())
        if profile.workflows >= max(profile.rebuilt_at + 1.0, profile.rebuilt_at * _REBUILT_BY) or not profile.rebuilt_at:
            self._rebuild(workload, profile)

    def forget(self, workload: str) -> None:
        """A workload that is no longer kept."""
        profile = self._profiles.pop(workload, None)
        if profile is not None:
            self._remove(workload, profile)

    def rename(self, workload: str, name: str) -> None:
        """Gives a workload another name, under which nothing is known yet."""
        profile = self._profiles.pop(workload)
        self._remove(workload, profile)
        self._insert(name, profile)

    def _add(self, scores: dict[str, float], step: Evidence) -> None:
        position, agent, features = step
        callers = self._callers.get(agent, ())
        for name, stranger in self._strangers.items():
            profile = self._profiles[name]
            score = profile.agent_score(position, agent) if name in callers else stranger
            scores[name] += score + profile.missing[position] if position >= 0 else score
        backgrounds = self._backgrounds()
        if position >= 0:
            for holders in map(self._holders[position].get, features):
                if holders:
                    background = backgrounds[len(holders)]
                    for name, gain in holders.items():
                        scores[name] += gain - background
            return
        # Of a later step it is not known what should be there: absences do not count against anyone.
        for feature in features:
            holders = next((found for found in (table.get(feature) for table in self._holders) if found), {})
            for name in holders:
                scores[name] -= backgrounds[len(holders)]

    def _backgrounds(self) -> list[float]:
        """By how many workloads have a feature: the logarithm of its chance in one that nobody knows."""
        workloads = len(self._profiles)
        if len(self._logs) != workloads + 1:
            shares = [(number - 1) / max(workloads, 1) for number in range(workloads + 1)]  # of the others
            self._logs = [math.log(min(max(_BACKGROUND, share), _MOST_BACKGROUND)) for share in shares]
        return self._logs

    def _rebuild(self, workload: str, profile: _Profile) -> None:
        self._unindex(workload, profile)
        for holders, gains in zip(self._holders, profile.choose(), strict=True):
            for feature, gain in gains.items():
                holders.setdefault(feature, {})[workload] = gain

    def _unindex(self, workload: str, profile: _Profile) -> None:
        for holders, features in zip(self._holders, profile.template, strict=True):
            for feature in features:
                del holders[feature][workload]
                if not holders[feature]:
                    del holders[feature]

    def _insert(self, workload: str, profile: _Profile) -> None:
        self._profiles[workload] = profile
        self._strangers[workload] = math.log(profile.novelty())
        for agent in profile.all_agents:
            self._callers.setdefault(agent, set()).add(workload)
        profile.template = [()] * STEPS
        self._rebuild(workload, profile)

    def _remove(self, workload: str, profile: _Profile) -> None:
        self._unindex(workload, profile)
        del self._strangers[workload]
        for agent in [agent for agent, callers in self._callers.items() if workload in callers]:
            self._callers[agent].discard(workload)
            if not self._callers[agent]:
                del self._callers[agent]

    def dump(self) -> dict[str, Any]:
        """What is known, by workload."""
        return {
            name: {
                "workflows": profile.workflows,
                "steps": profile.steps,
                "features": [[[key, count] for key, count in counts.items()] for counts in profile.features],
                "agents": profile.agents,
                "all_agents": profile.all_agents,
            }
            for name, profile in self._profiles.items()
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "Recognition":
        """Raises:
        ValueError: `state` is not what `dump` gives.
        """
        recognition = cls()
        for name, each in state.items():
            recognition._insert(name, _restored(each))
        return recognition


def _restored(state: Any) -> _Profile:
    profile = _Profile()
    try:
        profile.workflows = _number(state["workflows"])
        profile.steps = [_number(count) for count in state["steps"]]
        profile.features = [{int(key): _number(count) for key, count in table} for table in state["features"]]
        profile.agents = [_names_of(table) for table in state["agents"]]
        profile.all_agents = _names_of(state["all_agents"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"what workloads are recognised by does not fit: {error!r}") from error
    if not len(profile.steps) == len(profile.features) == len(profile.agents) == STEPS or not profile.all_agents:
        raise ValueError("what workloads are recognised by is of other steps")
    return profile


def _number(value: Any) -> float:
    if not isinstance(value, float) or not 0.0 <= value < 1e9:
        raise ValueError(f"a count must not be negative, got {value!r}")
    return value


def _names_of(table: Any) -> dict[str, float]:
    return {str(name): _number(count) for name, count in table.items()}
