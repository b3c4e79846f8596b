"""Scores a workflow against the profiles of the known workloads: which one do its first agents and prompts fit?

A score is a log likelihood ratio against a workload that is not known yet; if none is above 0, the workflow belongs to such a
one. Features of a step (pieces of its prompt, its call site, words of its agent's name) that a share θ ≥ 0.25 of a workload's
workflows have at that step form its template. One that is present adds ln(θ / θ0), one that is absent ln((1 - θ) / (1 - θ1)).
θ0 is the share of other workloads that have the feature in their template, so what a framework writes into every prompt counts
little; θ1 = 0.1.
An agent adds the logarithm of its share of the calls over that of a random name; an agent never seen before, the logarithm of
the share of such calls in the past (Good and Turing). A workload counts in proportion to its workflows (the Chinese restaurant
process).
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.predictor_service.workload.evidence import STEPS, StepEvidence
from pbkv_cluster.predictor_service.workload.profile import MIN_BACKGROUND, WorkloadProfile

_MAX_BACKGROUND = 0.5  # θ0
_REBUILD_GROWTH = 1.5  # of a workload's workflows, until its template is chosen anew


class WorkflowEvidence:
    """The first steps of one workflow, and its score for each workload."""

    __slots__ = ("scores", "steps")

    def __init__(self) -> None:
        self.steps: list[StepEvidence] = []
        self.scores: dict[str, float] = {}  # by workload


class WorkloadProfiles:
    """Profiles of the known workloads, indexed by feature and by agent."""

    def __init__(self) -> None:
        self._profiles: dict[str, WorkloadProfile] = {}
        self._gains: list[dict[int, dict[str, float]]] = [{} for _ in range(STEPS)]  # by feature and workload
        self._callers: dict[str, set[str]] = {}  # workloads by agent
        self._backgrounds: list[float] = []  # see `_log_backgrounds`
        self._novelties: dict[str, float] = {}  # by workload: score of an agent that it does not know

    def __contains__(self, workload: str) -> bool:
        return workload in self._profiles

    def __len__(self) -> int:
        return len(self._profiles)

    def add_step(self, evidence: WorkflowEvidence, step: StepEvidence) -> None:
        """Adds a step of a workflow to its evidence, and scores it."""
        evidence.steps.append(step)
        if evidence.scores.keys() == self._profiles.keys():
            self._score(evidence.scores, step)
            return
        evidence.scores = {name: profile.prior() for name, profile in self._profiles.items()}
        for each in evidence.steps:
            self._score(evidence.scores, each)

    def best(self, evidence: WorkflowEvidence, among: Collection[str] | None = None) -> str:
        """The workload that fits best; "" if none fits.

        Args:
            evidence: of the workflow.
            among: the workloads to choose from; by default all.
        """
        found, highest = "", 0.0
        for name, score in evidence.scores.items():
            if score > highest and name in self._profiles and (among is None or name in among):
                found, highest = name, score
        return found

    def learn(self, workload: str, steps: Sequence[StepEvidence]) -> None:
        """Learns from the first steps of a workflow that belongs to a workload."""
        profile = self._profiles.get(workload)
        if profile is None:
            profile = self._profiles[workload] = WorkloadProfile()
        known = profile.all_agents.keys() & {step.agent for step in steps}
        profile.learn(steps)
        for step in steps:
            if step.agent not in known:
                self._callers.setdefault(step.agent, set()).add(workload)
        self._novelties[workload] = math.log(profile.novelty())
        due = max(profile.rebuilt_at + 1.0, profile.rebuilt_at * _REBUILD_GROWTH)
        if profile.workflows >= due or not profile.rebuilt_at:
            self._rebuild(workload, profile)

    def forget(self, workload: str) -> None:
        """Drops the profile of a workload, if there is one."""
        profile = self._profiles.pop(workload, None)
        if profile is not None:
            self._unindex(workload, profile)

    def rename(self, workload: str, name: str) -> None:
        """Gives a workload another name, which must not be known yet."""
        profile = self._profiles.pop(workload)
        self._unindex(workload, profile)
        self._insert(name, profile)

    def dump(self) -> dict[str, Any]:
        """What is known, by workload."""
        return {name: profile.dump() for name, profile in self._profiles.items()}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "WorkloadProfiles":
        """Raises:
        ValueError: `state` is not what `dump` gives.
        """
        profiles = cls()
        for name, each in state.items():
            profiles._insert(name, WorkloadProfile.restore(each))
        return profiles

    def _score(self, scores: dict[str, float], step: StepEvidence) -> None:
        position, agent, features = step
        callers = self._callers.get(agent, ())
        for name, novelty in self._novelties.items():
            profile = self._profiles[name]
            score = profile.agent_score(position, agent) if name in callers else novelty
            scores[name] += score + profile.absence[position] if position >= 0 else score
        backgrounds = self._log_backgrounds()
        if position >= 0:
            for gains in map(self._gains[position].get, features):
                if gains:
                    background = backgrounds[len(gains)]
                    for name, gain in gains.items():
                        scores[name] += gain - background
            return
        # Nothing is known of what a later step should have, so absence counts against no workload.
        for feature in features:
            gains = next((found for found in (table.get(feature) for table in self._gains) if found), {})
            for name in gains:
                scores[name] -= backgrounds[len(gains)]

    def _log_backgrounds(self) -> list[float]:
        """ln θ0, by how many workloads have a feature."""
        workloads = len(self._profiles)
        if len(self._backgrounds) != workloads + 1:
            shares = [(number - 1) / max(workloads, 1) for number in range(workloads + 1)]  # of the other workloads
            self._backgrounds = [math.log(min(max(MIN_BACKGROUND, share), _MAX_BACKGROUND)) for share in shares]
        return self._backgrounds

    def _rebuild(self, workload: str, profile: WorkloadProfile) -> None:
        self._unindex_features(workload, profile)
        for table, gains in zip(self._gains, profile.choose_template(), strict=True):
            for feature, gain in gains.items():
                table.setdefault(feature, {})[workload] = gain

    def _unindex_features(self, workload: str, profile: WorkloadProfile) -> None:
        for table, features in zip(self._gains, profile.template, strict=True):
            for feature in features:
                del table[feature][workload]
                if not table[feature]:
                    del table[feature]

    def _insert(self, workload: str, profile: WorkloadProfile) -> None:
        self._profiles[workload] = profile
        self._novelties[workload] = math.log(profile.novelty())
        for agent in profile.all_agents:
            self._callers.setdefault(agent, set()).add(workload)
        profile.template = [()] * STEPS
        self._rebuild(workload, profile)

    def _unindex(self, workload: str, profile: WorkloadProfile) -> None:
        self._unindex_features(workload, profile)
        del self._novelties[workload]
        for agent in [agent for agent, callers in self._callers.items() if workload in callers]:
            self._callers[agent].discard(workload)
            if not self._callers[agent]:
                del self._callers[agent]
