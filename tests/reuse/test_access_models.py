"""The access models of several workloads: which says what, that none learns from what others do, and what is dropped."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.access_log import AccessLog, StepLog
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate
from pbkv_cluster.reuse.model.access_models import ANY, AccessModels, train
from pbkv_cluster.reuse.model.features import facts
from tests.reuse.taught_models import contents, taught
from tests.reuse.workflow_logs import Step, record, workflows

KEPT = [Step("planner", (1,), (2,)), Step("coder", (3, 4)), Step("planner", (1, 2, 5))]  # the planner's path is used again
LEFT = [Step("planner", (1,), (2,)), Step("coder", (3, 4)), Step("planner", (6, 7))]  # no path is


def log(workload: str, steps: Sequence[Step]) -> AccessLog:
    return AccessLog("w", record(steps).steps, workload)


def next_step(model: AccessModel) -> float:
    """The probability that the planner's path is used in the third step, after the first two of a workflow."""
    history = record(KEPT[:2])
    rows = facts(history, history.segments[:1], model.events.distribution(history.steps))
    return float(model.hazard.hazards(rows)[0, 0])


logs = st.lists(st.tuples(st.sampled_from(("one", "two", ANY)), workflows(4).filter(bool)), min_size=1, max_size=8)


@settings(max_examples=5, deadline=None)
@given(logs, workflows(4).filter(bool))
def test_a_workload_learns_what_it_would_learn_alone(played: list[tuple[str, list[Step]]], before: list[Step]) -> None:
    prior = taught([record(before).steps])
    models = train([log(*each) for each in played], prior)
    for workload in ("one", "two"):
        alone = prior.copy()
        for name, steps in played:
            if name == workload:
                alone.learn(record(steps).steps)
        assert contents(models.of(workload)) == contents(alone)
    everything = prior.copy()
    for _, steps in played:
        everything.learn(record(steps).steps)
    assert contents(models.of(ANY)) == contents(everything)
    assert contents(models.prior) == contents(prior)


def test_a_workload_that_has_taught_nothing_has_the_prior_and_an_unknown_one_what_all_have_taught() -> None:
    prior = taught([record(KEPT).steps])
    models = train([log("one", LEFT)], prior)
    assert models.of("two") is prior
    assert models.of(ANY) is not prior
    assert AccessModels(prior).of(ANY) is prior


@settings(max_examples=5, deadline=None)
@given(logs, st.integers(1, 3))
def test_who_applies_every_update_has_the_same_models_and_drops_the_same(
    played: list[tuple[str, list[Step]]], most: int
) -> None:
    prior = taught([record(KEPT).steps])
    learner, follower = AccessModels(prior, most), AccessModels(None, most)
    follower.apply(prior.export(workload=None, fresh=True))
    for each in played:
        for learnt in learner.learn(log(*each)):
            if learnt.workload in learner.workloads:
                update = learner.of(learnt.workload).export(learnt.changes, learnt.workload, learnt.fresh)
                for part in update.parts(20_000):
                    follower.apply(AccessUpdate.from_bytes(part.to_bytes()))
    assert follower.workloads == learner.workloads
    assert len(follower) <= most
    for workload in learner.workloads:
        assert contents(follower.of(workload)) == contents(learner.of(workload))


def test_a_new_prior_voids_what_was_learnt_with_another() -> None:
    models = train([log("one", KEPT)], taught([record(LEFT).steps]))
    other = taught([record(KEPT).steps])
    models.apply(other.export(workload=None, fresh=True))
    assert models.workloads == []
    assert contents(models.of("one")) == contents(other)


def test_all_models_can_be_handed_on() -> None:
    models = train([log("one", KEPT), log("two", LEFT), log("one", KEPT)], taught([record(KEPT).steps]))
    other = AccessModels(models.prior)
    for update in models.export():
        other.apply(update)
    assert other.workloads == models.workloads == ["two", "one", ANY]
    for workload in models.workloads:
        assert contents(other.of(workload)) == contents(models.of(workload))


def test_ten_workflows_of_its_own_outweigh_what_other_workloads_do() -> None:
    models = train([log("other", LEFT)] * 40 + [log("own", KEPT)] * 10)
    assert next_step(models.of("other")) < 0.1
    assert next_step(models.of("own")) > 0.8


def test_a_log_that_contradicts_itself_teaches_nothing() -> None:
    models = train([log("one", KEPT)])
    before = [contents(models.of(workload)) for workload in models.workloads]
    with pytest.raises(ValueError, match="came_from"):
        models.learn(AccessLog("liar", [StepLog(0, "a", 5, 3, 0.0)], "two"))
    assert [contents(models.of(workload)) for workload in models.workloads] == before
