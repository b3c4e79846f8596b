"""The network as an expert: when it is trained, what it forecasts of unknown agents, and its saved state."""

import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.experts import network as network_module
from pbkv_cluster.predictor_service.experts.base import Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.network import NetworkExpert
from pbkv_cluster.predictor_service.network.job import NetworkJob
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.workflow.situation import END, Situation

CONFIG = PredictorConfig(model="pbkv", horizon=2)


def expert_of(agents: str, config: PredictorConfig = CONFIG) -> NetworkExpert:
    known = {"names": list(agents), "seen_at": [1] * len(agents), "unseen": 0.0}
    return NetworkExpert(config, Labels.restore(known, config.max_agents))


def show(expert: NetworkExpert, agents: str) -> None:
    """Lets it learn a whole workflow."""
    targets = [expert.labels.column(agent) for agent in agents] + [0, 0]
    expert.learn_workflow(
        [
            TrainingExample(expert.features(situation(agents[:step])), (targets[step], targets[step + 1]))
            for step in range(len(agents) + 1)
        ]
    )


def situation(agents: str) -> Situation:
    return Situation(tuple(agents[-12:]), len(agents), agents.count(agents[-1]) if agents else 0)


def forecast(expert: NetworkExpert, *texts: str) -> Floats:
    return expert.forecast([expert.features(situation(text)) for text in texts])


def train(expert: NetworkExpert, now: bool = False) -> bool:
    """Runs a job that is due. Returns whether there was one."""
    job = expert.training_due(now)
    if job is not None:
        expert.training_done(job.run())
    return job is not None


@pytest.fixture(scope="module")
def taught() -> NetworkExpert:
    expert = expert_of("abcz")
    for number in range(24):
        show(expert, "abc" if number % 2 else "acb")
    assert train(expert)
    return expert


def test_it_abstains_before_its_first_network() -> None:
    expert = expert_of("abc")
    assert forecast(expert, "", "ab").shape == (2, 2, 4)
    assert not forecast(expert, "", "ab").any()


def test_it_forecasts_agents_and_the_end(taught: NetworkExpert) -> None:
    found = forecast(taught, "", "ab", "abc", "acb")
    np.testing.assert_allclose(found.sum(axis=2), 1.0, rtol=1e-5)
    column = taught.labels.column
    assert found[0, 0, column("a")] > 0.8
    assert found[1, 0, column("c")] > 0.8
    assert found[1:4, 1, 0].min() > 0.8
    assert found[2:4, 0, 0].min() > 0.8


def test_an_agent_unknown_to_the_network_is_unlikely_and_after_it_the_network_abstains(taught: NetworkExpert) -> None:
    found = forecast(taught, "a", "z", "za", "az")
    unknown = found[0, :, taught.labels.column("z")]
    assert ((unknown > 0.0) & (unknown < 0.01)).all()
    assert not found[1].any()
    assert not found[3].any()
    assert found[2].any()


def test_columns_may_change(taught: NetworkExpert) -> None:
    other = expert_of("zcba")
    other.restore(taught.dump())
    there, here = forecast(other, "ab"), forecast(taught, "ab")
    for label in taught.labels.names:
        np.testing.assert_allclose(there[..., other.labels.column(label)], here[..., taught.labels.column(label)], rtol=1e-5)


def test_trainings_get_rarer_and_run_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MAX_NEW", 20)
    monkeypatch.setattr(network_module, "MAX_WORKFLOWS", 50)
    expert = expert_of("abc")
    due, sizes = [], []
    for number in range(1, 101):
        show(expert, "ab")
        if (job := expert.training_due(False)) is not None:
            assert expert.training_due(True) is None  # another is under way
            due.append(number)
            sizes.append(len(job.workflows))
            expert.training_done(None)
    assert due == [8, 12, 18, 27, 40, 60, 80, 100]
    assert sizes == [8, 12, 18, 27, 40, 50, 50, 50]
    assert expert.training_due(True) is None  # nothing new
    show(expert, "ab")
    assert expert.training_due(False) is None
    assert expert.training_due(True) is not None


def test_the_workflows_kept_are_bounded_by_examples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MAX_EXAMPLES", 40)
    expert = expert_of("ab")
    for _ in range(30):
        show(expert, "ab")
    show(expert, "ab" * 30)  # too long by itself
    job = expert.training_due(True)
    assert job is not None
    assert len(job.workflows) == 40 // 3


def test_only_workflows_that_the_network_in_use_has_not_seen_are_held_back() -> None:
    expert = expert_of("ab")
    held_back = []
    for new in (60, 3, 1):
        for _ in range(new):
            show(expert, "ab")
        job = expert.training_due(True)
        assert isinstance(job, NetworkJob)
        held_back.append(job.held_back)
        expert.training_done(None)
    assert held_back == [10, 3, 1]


def test_a_training_that_failed_leaves_the_network_in_use(taught: NetworkExpert) -> None:
    before = forecast(taught, "ab")
    show(taught, "ab")
    assert taught.training_due(True) is not None
    taught.training_done(None)
    np.testing.assert_array_equal(forecast(taught, "ab"), before)


def test_a_restored_network_forecasts_the_same(taught: NetworkExpert) -> None:
    again = expert_of("abcz")
    again.restore(taught.dump())
    texts = ["", "a", "ab", "abc", "z"]
    np.testing.assert_array_equal(forecast(again, *texts), forecast(taught, *texts))
    again.restore(expert_of("abc").dump())
    assert not forecast(again, "ab").any()


def damaged(state: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    network = state["network"]
    return {
        "network": {**network, name: value} if name in network else {**network, "arrays": {**network["arrays"], name: value}}
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", ["a", "b"]),
        ("labels", ["a", "b", "b"]),
        ("labels", ["a", "b", END]),
        ("labels", [str(number) for number in range(600)]),
        ("labels", None),
        ("edges", np.ones((3, 4), dtype=np.float32)),
        ("edges", np.full((4, 4), -1.0, dtype=np.float32)),
        ("edges", "edges"),
        ("hidden", 5),
        ("hidden", -1),
        ("hidden", 1 << 40),
        ("hidden", True),
        ("positions", False),
        ("positions", 1),
        ("arrays", None),
        ("arrays", {}),
        ("outer.bias", np.zeros(5, dtype=np.float32)),
        ("outer.bias", np.full(8, np.nan, dtype=np.float32)),
        ("outer.bias", np.zeros(8, dtype=np.int64)),
        ("another", np.zeros(8, dtype=np.float32)),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(taught: NetworkExpert, name: str, value: object) -> None:
    before = forecast(taught, "ab")
    with pytest.raises(ValueError, match="its"):
        taught.restore(damaged(taught.dump(), name, value))
    np.testing.assert_array_equal(forecast(taught, "ab"), before)


@pytest.mark.parametrize("state", [{}, {"network": 1}, {"network": {}}])
def test_a_state_of_something_else_is_refused(taught: NetworkExpert, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it"):
        taught.restore(state)


def test_a_network_of_another_horizon_is_refused(taught: NetworkExpert) -> None:
    with pytest.raises(ValueError, match="outer"):
        expert_of("abcz", CONFIG.model_copy(update={"horizon": 3})).restore(taught.dump())


def workflow(name: str, agents: Sequence[str], ends: bool = True) -> list[WorkflowEvent]:
    kinds = [(EventKind.WORKFLOW_STARTED, "", 0), *((EventKind.STEP_STARTED, agent, at) for at, agent in enumerate(agents))]
    if ends:
        kinds.append((EventKind.WORKFLOW_ENDED, "", 0))
    return [WorkflowEvent(kind, name, at, float(at), "app", agent, step=step) for at, (kind, agent, step) in enumerate(kinds)]


@pytest.mark.slow
def test_a_predictor_that_trains_at_once_learns_the_same_from_equal_events() -> None:
    def learnt() -> bytes:
        predictor = PREDICTORS.get("pbkv")(CONFIG)
        draws = random.Random(0)
        for number in range(9):
            for event in workflow(f"{number}", ["plan", *draws.choices(["code", "test"], k=2), "review"]):
                predictor.observe(event)
                predictor.learn()
        predictor.train()
        for event in workflow("w", ["plan"], ends=False):
            predictor.observe(event)
        (found,) = predictor.forecast(["w"], 0, 0.0)
        assert found.steps[0].agents["code"] + found.steps[0].agents["test"] > 0.8
        return predictor.dump()

    assert learnt() == learnt()


def test_torch_is_imported_only_with_an_expert_that_computes_by_it() -> None:
    script = "import sys; import pbkv_cluster.predictor_service.server; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)})
