"""A cache that learns from the workflows that end in it, for the tests of policies that do."""

import random
from collections.abc import Sequence
from typing import Any

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.reuse.model.access_model import AccessModel
from tests.reuse.workflow_logs import Path, Step, packed

SPACE = Namespace("m", "r", "f", "l")


class LearningCache:
    """Steps are played on it one after the other, a second apart. Prompts are paths of blocks, and a token."""

    def __init__(self, gpu_blocks: int = 2000, policy: str = "pbkv", **fields: Any) -> None:
        self.clock = ManualClock()
        config = CacheConfig.model_validate({"policy": policy, "guard": False, **fields})
        self.cache = make_cache({Tier.GPU: gpu_blocks}, config, NullTransferEngine(), self.clock)
        self.cache.workflows.on_ended = self._learn
        self.learner = AccessModel()
        self.epoch = 0
        self.steps: dict[str, int] = {}
        self.hits = 0

    @property
    def policy(self) -> Pbkv:
        """The cache's policy, which must be `pbkv`."""
        policy = self.cache.policy
        assert isinstance(policy, Pbkv)
        return policy

    def _learn(self, ended: AccessLog) -> None:
        self.cache.workflows.learnt(self.learner.export(self.learner.learn(ended.steps)))

    def begin(self, workflow: str, step: Step) -> CacheHandle:
        self.clock.advance(1.0)
        number = self.steps[workflow] = self.steps.get(workflow, -1) + 1
        tokens = prompt(step.prompt)
        handle = self.cache.open(StepIdentity(SPACE, workflow, step.agent, number, count(tokens)), tokens)
        assert handle is not None
        self.hits += handle.delivered.get(Tier.GPU, 0)
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        return handle

    def step(self, workflow: str, step: Step) -> None:
        handle = self.begin(workflow, step)
        if step.output:
            tokens = packed(step.path)
            assert self.cache.grow(handle, count(tokens))
            self.cache.commit(handle, tokens)
        self.clock.advance(0.5)
        self.cache.close(handle)

    def run(self, workflow: str, steps: Sequence[Step], end: bool = True) -> None:
        for step in steps:
            self.step(workflow, step)
        if end:
            self.cache.retire(workflow)

    def forecast(self, workflow: str, **agents: float) -> None:
        self.epoch += 1
        steps = (StepForecast(agents, 1.0),)
        self.cache.apply(Forecast(workflow, self.epoch, 0.0, steps, step=self.steps[workflow]))

    def holds(self, path: Path) -> bool:
        return sum(self.cache.captured(SPACE, prompt(path)).values()) == len(path) * BLOCK_TOKENS

    def order(self, **paths: Path) -> list[str]:
        """The names of some paths, in the order in which they cease to be whole as everything is evicted."""
        gone: list[str] = []
        tiers = self.cache.tiers
        while left := [name for name, path in paths.items() if name not in gone and self.holds(path)]:
            slots = tiers.take(tiers.pools[0].free_slots + 1)
            assert slots is not None
            tiers.give(slots)
            gone += [name for name in left if not self.holds(paths[name])]
        return gone


def prompt(path: Path) -> bytes:
    return packed(path) + pack([1])


def random_steps(cache: LearningCache, seed: int, length: int) -> None:
    """Steps of workflows that share stems, with forecasts and ends between them."""
    source = random.Random(seed)
    paths: dict[str, Path] = {}
    for _ in range(length):
        workflow, kind = f"w{source.randrange(5)}", source.random()
        if kind < 0.1:
            cache.cache.retire(workflow)
            paths.pop(workflow, None)
        elif kind < 0.25 and workflow in paths:
            cache.forecast(workflow, planner=source.random(), coder=0.0)
        else:
            known = paths.get(workflow, ())
            path = known if len(known) in range(1, 7) else tuple(source.randrange(3) for _ in range(source.randrange(1, 4)))
            output = tuple(source.randrange(2) for _ in range(source.randrange(3)))
            step = Step(source.choice(("planner", "coder")), path, output)
            cache.step(workflow, step)
            paths[workflow] = step.path
