"""Runs of the policy that learns: what it knows before, what it learns meanwhile, and that both are the same everywhere."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from zlib import crc32

import pytest

from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.reuse.model.access_models import AccessModels, train
from pbkv_cluster.reuse.model.next_event import END
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.workload.access_logs import access_logs
from tests.simulator.simulated import source, trace
from tests.simulator.test_simulation import first_difference

SETUP = Setup(60, 0, "pbkv")


def trained(setup: Setup = SETUP) -> Setup:
    return train_state(setup, [trace(20, seed=9)])


def everything(models: AccessModels) -> bytes:
    return b"".join(update.to_bytes() for update in models.export())


def test_a_run_leaves_what_was_learnt_before_as_it_was() -> None:
    setup = trained()
    assert setup.access is not None
    before = everything(setup.access)
    first = simulate(source(12), setup)
    assert everything(setup.access) == before
    assert simulate(source(12), setup) == first, "and the next run starts from the same"


def test_what_was_learnt_before_changes_what_is_kept() -> None:
    tokens = source(24, seed=3)
    blank, known = simulate(tokens, SETUP), simulate(tokens, trained())
    assert blank.steps != known.steps
    assert known.hit_gpu > simulate(tokens, replace(SETUP, policy="lru")).hit_gpu


@pytest.mark.parametrize("known", [False, True])
def test_nobody_looks_ahead(known: bool) -> None:
    first_difference(trained() if known else SETUP)


def test_logs_of_a_trace_tell_its_agents_and_its_end() -> None:
    workflows = trace(6).workflows
    logs = list(access_logs(workflows))
    assert [[step.agent for step in log.steps] for log in logs] == [[step.agent for step in each.steps] for each in workflows]
    assert all(step.ended_at >= step.began_at >= 0.0 for log in logs for step in log.steps)
    models = train(logs)
    assert all(END in models.of(log.workload).events.distribution(log.steps) for log in logs)


def test_a_workflow_that_ends_teaches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[int] = []
    learn = AccessModel.learn

    def noted(model: AccessModel, steps: object) -> object:
        learnt.append(len(steps))  # type: ignore[arg-type]
        return learn(model, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(AccessModel, "learn", noted)
    tokens = source(10)
    simulate(tokens, SETUP)
    assert sorted(learnt) == sorted(len(arrival.workflow.steps) for arrival in tokens.workload.arrivals)
    learnt.clear()
    simulate(tokens, replace(SETUP, policy="pbkv-paper"))
    assert not learnt, "nobody asks for it"


def played() -> list[object]:
    """A run with everything in it, as text that does not depend on this process."""
    setup = trained(replace(SETUP, gpu_blocks=80, host_blocks=60, noise=0.5, cache=CacheConfig(host_policy="pbkv")))
    result = simulate(source(16, seed=5), setup)
    assert setup.access is not None
    assert result.decisions["evict_active"] + result.decisions["evict_retired"] > 100
    return [repr(result.steps), repr(result.guard), sorted(result.decisions.items()), crc32(everything(setup.access))]


def test_equal_seeds_give_equal_runs_in_any_process() -> None:
    code = "import json; from tests.simulator.test_learned_access import played; print(json.dumps(played()))"
    found = []
    for seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=120)
        found.append(json.loads(out.stdout))
    assert found[0] == found[1]
