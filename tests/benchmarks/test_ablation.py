"""The variants of our policy: each runs, and behaves differently from the whole policy."""

from dataclasses import replace

import pytest

from benchmarks.policies import ablation
from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from tests.simulator.simulated import source, trace

VARIANTS = [
    name for name, kind in vars(ablation).items() if isinstance(kind, type) and issubclass(kind, Pbkv) and kind is not Pbkv
]


@pytest.fixture(scope="module")
def setup() -> Setup:
    return train_state(Setup(70, 0, "pbkv", cache=CacheConfig(guard=False)), [trace(20, seed=9)])


def test_each_variant_leaves_something_out(setup: Setup) -> None:
    tokens = source(30, seed=3, concurrency=12)
    whole = simulate(tokens, setup)
    assert len(VARIANTS) == 8
    for name in VARIANTS:
        policy = make_policy(f"{ablation.__name__}:{name}", setup.cache)
        assert isinstance(policy, Pbkv)
        assert type(policy.for_shadow(setup.cache)) is type(policy)
        run = simulate(tokens, replace(setup, policy=f"{ablation.__name__}:{name}"))
        assert run.meter.prompt_tokens == whole.meter.prompt_tokens
        assert run.steps != whole.steps, f"{name} changes nothing"
