"""The variable-order model: by hand, and its memory."""

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import TrainingExample, context_tree
from pbkv_cluster.predictor_service.experts.context_tree import ContextTree
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.workflow.situation import Situation

A = 4.0  # the prior's weight


def expert_for(agents: str, horizon: int = 3) -> ContextTree:
    labels = Labels(64)
    labels.declare(agents, {})
    return ContextTree(PredictorConfig(horizon=horizon), labels)


def situation(agents: str) -> Situation:
    return Situation(agents=tuple(agents)[-12:], step=len(agents))


def teach(expert: ContextTree, *workflows: str) -> None:
    for agents in workflows:
        columns = [expert.labels.column(agent) for agent in agents] + [0] * expert.horizon
        for at in range(len(agents) + 1):
            expert.learn([TrainingExample(expert.features(situation(agents[:at])), tuple(columns[at : at + expert.horizon]))])


def rows(expert: ContextTree, agents: str) -> np.ndarray:
    (found,) = expert.forecast([expert.features(situation(agents))])
    return np.asarray(found)


def test_nothing_known_is_uniform() -> None:
    assert rows(expert_for("abc"), "a") == pytest.approx(np.full((3, 4), 0.25))


def test_by_hand() -> None:
    expert = expert_for("ab", horizon=1)
    teach(expert, "ab")
    # Contexts of "a": none, "a", all steps "a", and (step 1, "a"). a, b and the end followed the first once each,
    # b followed each of the others once.
    expected = np.full(3, 1 / 3)
    expected = (np.array([1.0, 1.0, 1.0]) + A * expected) / (3 + A)
    for _ in range(3):
        expected = (np.array([0.0, 0.0, 1.0]) + A * expected) / (1 + A)
    assert rows(expert, "a")[0] == pytest.approx(expected, abs=1e-6)
    # After "b", which was never first: no agent, and "b", which the end followed; two more contexts are unknown.
    after = (np.array([1.0, 0.0, 0.0]) + A * np.full(3, 1 / 3)) / (1 + A)
    assert rows(expert, "b")[0] == pytest.approx(after, abs=1e-6)


def test_each_step_ahead_is_counted_by_itself() -> None:
    expert = expert_for("abc")
    teach(expert, *["abc"] * 50)
    first, second, third = rows(expert, "a")
    assert (first.argmax(), second.argmax(), third.argmax()) == (2, 3, 0)
    assert min(first.max(), second.max(), third.max()) > 0.95


@pytest.mark.parametrize("depth", [2, 5, 8])
def test_contexts_reach_far_back(depth: int) -> None:
    expert = expert_for("abxyz")
    same = "z" * (depth - 1)
    for _ in range(60):
        teach(expert, f"xxxxxxxxxa{same}x", f"xxxxxxxxxb{same}y")
    assert rows(expert, f"xxxxxxxxxa{same}")[0].argmax() == expert.labels.column("x")
    assert rows(expert, f"xxxxxxxxxb{same}")[0].argmax() == expert.labels.column("y")


def keys_of(features: bytes) -> set[int]:
    return set(np.frombuffer(features, dtype=np.uint32)[1:].tolist())


def test_labels_are_kept_apart_in_contexts() -> None:
    expert = expert_for("a")
    one = expert.features(Situation(agents=("ab", "c"), step=2))
    other = expert.features(Situation(agents=("a", "bc"), step=2))
    assert not keys_of(one) & keys_of(other) - {0}


def test_outputs_teach_nothing() -> None:
    expert = expert_for("ab")
    expert.learn([TrainingExample(expert.features(Situation(agents=("a",), step=1, finished=True)), (1, 1, 1))])
    assert expert.dump()["keys"] == []


def test_beyond_its_memory_the_half_seen_longest_ago_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_tree, "MAX_COUNTS", 100 * 3 * 8)
    expert = expert_for("abcdefg")
    teach(expert, *["ab"] * 20)
    for number in range(400):
        teach(expert, "".join("abcdefg"[(number * 7919 + at * at * (number + 1)) % 7] for at in range(6)))
        assert expert.contexts <= 100
    assert rows(expert, "a").sum(axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
    teach(expert, *["ab"] * 20)
    assert rows(expert, "a")[0].argmax() == expert.labels.column("b")


def test_columns_move_with_their_counts() -> None:
    expert = expert_for("abc")
    teach(expert, *["ac"] * 20)
    expert.labels = Labels(64)
    expert.labels.declare("ca", {})
    expert.renumber([0, 3, 1])
    found = rows(expert, "a")
    assert found.shape == (3, 3)
    assert found[0].argmax() == 1


def test_saved_restored_and_refused() -> None:
    expert, other = expert_for("abc"), expert_for("abc")
    teach(expert, "abcab", "acb")
    other.restore(expert.dump())
    for agents in ("", "a", "abca"):
        assert rows(other, agents) == pytest.approx(rows(expert, agents), abs=1e-7)
    teach(expert, "abc")
    teach(other, "abc")
    assert rows(other, "ab") == pytest.approx(rows(expert, "ab"), abs=1e-7)
    good, before = expert.dump(), rows(other, "ab")
    for bad in (
        {},
        {**good, "keys": good["keys"][:-1]},
        {**good, "keys": [*good["keys"][:-1], good["keys"][0]]},
        {**good, "keys": ["x"] * len(good["keys"])},
        {**good, "counts": -good["counts"]},
        {**good, "counts": good["counts"][:, :2]},
    ):
        with pytest.raises(ValueError, match=r"keys|counts"):
            other.restore(bad)
    assert (rows(other, "ab") == before).all()


def test_an_empty_state_is_restored() -> None:
    expert, other = expert_for("ab"), expert_for("ab")
    other.restore(expert.dump())
    teach(other, *["ab"] * 10)
    assert rows(other, "a")[0].argmax() == 2


def test_outcomes_may_be_unknown() -> None:
    expert = expert_for("ab")
    for agents in ("", "a", "ab", "ba", "aab", "bbba", "abab", "babb", "aabba", "bbabaab"):
        expert.learn([TrainingExample(expert.features(situation(agents)), (-1, -1, -1))])
    assert rows(expert, "bbabaab") == pytest.approx(np.full((3, 3), 1 / 3))
    assert not expert.dump()["counts"].any()
