"""First-order transitions, computed by hand."""

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.markov import MAX_ROW_COUNT, MarkovExpert
from pbkv_cluster.predictor_service.workflow.situation import END, Situation

EPS = 0.1


def expert_for(agents: str) -> MarkovExpert:
    labels = Labels(64)
    labels.declare(agents, {})
    return MarkovExpert(PredictorConfig(smoothing=EPS), labels)


def teach(expert: MarkovExpert, *workflows: str) -> None:
    for agents in workflows:
        for at in range(len(agents) + 1):
            target = expert.labels.column(agents[at]) if at < len(agents) else 0
            situation = Situation(agents=tuple(agents[:at]), step=at)
            expert.learn([TrainingExample(expert.features(situation), (target, -1, -1))])


def rows(expert: MarkovExpert, agent: str) -> np.ndarray:
    (found,) = expert.forecast([expert.features(Situation(agents=(agent,) if agent else ()))])
    return np.asarray(found)


def test_the_next_step_by_hand() -> None:
    expert = expert_for("abc")
    teach(expert, "ab", "ab", "ac")
    z = 3 + 4 * EPS
    assert rows(expert, "a")[0] == pytest.approx([EPS / z, EPS / z, (2 + EPS) / z, (1 + EPS) / z])
    assert rows(expert, END)[0] == pytest.approx([EPS / z, (3 + EPS) / z, EPS / z, EPS / z])


def test_later_steps_chain_and_the_end_absorbs() -> None:
    expert = expert_for("ab")
    teach(expert, "ab", "ab")
    z = 2 + 3 * EPS
    a, b = np.array([EPS, EPS, 2 + EPS]) / z, np.array([2 + EPS, EPS, EPS]) / z
    second = a[0] * np.array([1, 0, 0]) + a[1] * a + a[2] * b
    assert rows(expert, "a")[1] == pytest.approx(second, abs=1e-6)
    assert rows(expert, "a")[2] == pytest.approx(second[0] * np.array([1, 0, 0]) + second[1] * a + second[2] * b, abs=1e-6)


def test_an_agent_that_has_left_leads_anywhere() -> None:
    expert = expert_for("ab")
    teach(expert, "ab")
    assert rows(expert, "gone")[0] == pytest.approx([1 / 3] * 3)


def test_new_agents_are_possible_at_once() -> None:
    expert = expert_for("ab")
    teach(expert, "ab")
    before = rows(expert, "a")
    expert.labels.declare("c", {})
    after = rows(expert, "a")
    assert after.shape == (3, 4)
    assert after[0, 3] == pytest.approx(EPS / (1 + 4 * EPS))
    assert after.sum(axis=1) == pytest.approx([1.0] * 3)
    assert before.shape == (3, 3)


def test_old_counts_are_halved() -> None:
    expert = expert_for("abc")
    for _ in range(int(MAX_ROW_COUNT)):
        teach(expert, "b")
    for _ in range(300):
        teach(expert, "c")
    counts = expert.dump()["counts"]
    assert counts[0, 3] / counts[0].sum() > 0.3  # although it is 300 of 1,324


def test_outputs_and_unknown_outcomes_teach_nothing() -> None:
    expert = expert_for("ab")
    state = Situation(agents=("a",))
    expert.learn([TrainingExample(expert.features(state), (-1, 1, 1))])
    expert.learn([TrainingExample(expert.features(Situation(agents=("a",), finished=True)), (2, -1, -1))])
    assert not expert.dump()["counts"].any()


def test_columns_move_together() -> None:
    expert = expert_for("abc")
    teach(expert, "ac", "ac")
    expert.labels = Labels(64)
    expert.labels.declare("ca", {})
    expert.renumber([0, 3, 1])
    assert rows(expert, "a")[0] == pytest.approx(np.array([EPS, 2 + EPS, EPS]) / (2 + 3 * EPS))


def test_saved_restored_and_refused() -> None:
    expert, other = expert_for("abc"), expert_for("abc")
    teach(expert, "abcab")
    other.restore(expert.dump())
    assert (rows(other, "b") == rows(expert, "b")).all()
    good = expert.dump()["counts"]
    for bad in (None, good[:2], -good, good * np.nan, good.astype(int), good.astype(str)):
        with pytest.raises(ValueError, match="counts"):
            other.restore({"counts": bad})
    assert (rows(other, "b") == rows(expert, "b")).all()
