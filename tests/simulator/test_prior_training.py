"""Learning a prior from recorded workflows."""

from dataclasses import replace

import numpy as np

from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.reuse.model.contexts import CONTEXTS, STRUCTURAL_CONTEXTS
from pbkv_cluster.reuse.model.features import Fact
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.prediction.prior_training import learn_prior
from pbkv_cluster.simulator.workload.access_logs import access_logs
from tests.reuse.taught_models import contents
from tests.simulator.simulated import source, trace

LOGS = {f"app-{seed}": list(access_logs(trace(8, seed=seed).workflows)) for seed in range(3)}
FAMILIES = {name: name for name in LOGS}


def test_names_of_agents_make_no_difference_to_counts() -> None:
    def renamed(suffix: str) -> dict[str, list[AccessLog]]:
        return {
            name: [log._replace(steps=[replace(step, agent=step.agent + suffix) for step in log.steps]) for log in logs]
            for name, logs in LOGS.items()
        }

    one, other = (learn_prior(renamed(suffix), FAMILIES).export() for suffix in ("", "-b"))
    assert len(one.rows) > 100
    assert one.contexts == other.contexts == ()
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.uses, other.uses)


def test_contexts_of_structure_have_no_names() -> None:
    named = {"KEY", "LAST_AGENT", "FIRST_AGENT", "AGENT", "AGENT_1", "AGENT_2", "NEXT", "SECOND"}
    for at, context in enumerate(CONTEXTS):
        assert (at in STRUCTURAL_CONTEXTS) == named.isdisjoint(Fact(fact).name for fact in context)


def test_what_one_family_alone_does_is_left_out() -> None:
    one_family = dict.fromkeys(LOGS, "all")
    assert len(learn_prior(LOGS, one_family).export().rows) == 0
    assert len(learn_prior(LOGS, FAMILIES).export().rows) > 100


def test_equal_logs_give_equal_priors() -> None:
    assert contents(learn_prior(LOGS, FAMILIES)) == contents(learn_prior(LOGS, FAMILIES))


def test_what_was_learnt_is_found_by_workflows_without_a_named_workload() -> None:
    unnamed = replace(trace(20, seed=9), workflows=tuple(replace(each, workload="") for each in trace(20, seed=9).workflows))
    setup = train_state(Setup(60, 0, "pbkv"), [unnamed])
    assert setup.access is not None
    assert any(name.startswith("unnamed") for name in setup.access.workloads)
    assert simulate(source(6), setup).steps
