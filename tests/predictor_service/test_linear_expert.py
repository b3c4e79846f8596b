"""The linear expert: what it learns, its saved state, and its size."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS, Expert, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.linear import expert as expert_module
from pbkv_cluster.predictor_service.experts.linear.expert import LinearExpert
from pbkv_cluster.predictor_service.experts.linear.features import HASHES, split
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.workflow.situation import Situation

CONFIG = PredictorConfig(horizon=3)
AGENTS = ("plan", "code", "test", "review")


def labels_of(*names: str, limit: int = 4096) -> Labels:
    return Labels.restore({"names": list(names), "seen_at": list(range(1, len(names) + 1)), "unseen": 0.0}, limit)


def expert_of(*names: str) -> LinearExpert:
    return LinearExpert(CONFIG, labels_of(*(names or AGENTS)))


def situation(draws: random.Random, **given: Any) -> Situation:
    agents = tuple(draws.choice(AGENTS) for _ in range(draws.randrange(1, 8)))
    fields: dict[str, Any] = {
        "agents": agents,
        "step": len(agents),
        "count": agents.count(agents[-1]),
        "run": 1,
        "call_sites": draws.choice(((), ("", "draft"))),
        "pieces": tuple(draws.randrange(1 << 32) for _ in range(draws.randrange(5))),
        "task": tuple(draws.randrange(1 << 20) for _ in range(draws.randrange(9))),
        "words": tuple(draws.randrange(1 << 20) for _ in range(draws.randrange(9))),
        "finished": draws.random() < 0.5,
    }
    return Situation(**{**fields, **given})


def teach(expert: Expert[Any], rule: Callable[[Situation], int], examples: int, draws: random.Random, **given: Any) -> None:
    for _ in range(examples):
        seen = situation(draws, **{name: value() for name, value in given.items()})
        expert.learn([TrainingExample(expert.features(seen), (rule(seen), -1, -1))])


def taught(seed: int = 0) -> LinearExpert:
    expert = expert_of()
    teach(expert, lambda seen: 1 + len(seen.agents) % 4, 60, random.Random(seed))
    return expert


def asked(expert: LinearExpert, number: int = 12) -> np.ndarray[Any, Any]:
    draws = random.Random(99)
    return expert.forecast([expert.features(situation(draws)) for _ in range(number)])


def test_it_goes_by_its_name() -> None:
    assert isinstance(EXPERTS.get("linear")(CONFIG, labels_of("a")), LinearExpert)


@pytest.mark.parametrize("name", ["prompt_tokens", "output_tokens"])
def test_it_learns_a_rule_from_the_length_of_a_text(name: str) -> None:
    draws, expert = random.Random(1), expert_of()

    def tokens() -> int:
        return draws.choice((draws.randrange(100, 130), draws.randrange(900, 1100)))

    def rule(seen: Situation) -> int:
        return 1 + int(getattr(seen, name) > 500)

    teach(expert, rule, 300, draws, agents=lambda: (draws.choice(AGENTS[:2]),), **{name: tokens})
    fresh = [situation(draws, agents=(AGENTS[0],), **{name: tokens()}) for _ in range(100)]
    found = expert.forecast([expert.features(seen) for seen in fresh])[:, 0].argmax(axis=1)
    assert np.mean(found == [rule(seen) for seen in fresh]) > 0.9


def test_it_learns_a_rule_from_what_an_agent_was_told_since_its_last_step() -> None:
    draws, expert = random.Random(1), expert_of()

    def grown() -> Situation:
        own, output, added = draws.randrange(500, 5000), draws.randrange(10, 500), draws.choice((40, 44))
        return situation(
            draws,
            agents=(draws.choice(AGENTS[:2]),),
            finished=False,
            prompt_tokens=own + output + added,
            previous_prompt_tokens=draws.randrange(500, 5000),
            agent_prompt_tokens=own,
            agent_output_tokens=output,
        )

    def rule(seen: Situation) -> int:
        return 1 + int(seen.prompt_tokens - seen.agent_prompt_tokens - seen.agent_output_tokens == 44)

    for _ in range(300):
        seen = grown()
        expert.learn([TrainingExample(expert.features(seen), (rule(seen), -1, -1))])
    fresh = [grown() for _ in range(100)]
    found = expert.forecast([expert.features(seen) for seen in fresh])[:, 0].argmax(axis=1)
    assert np.mean(found == [rule(seen) for seen in fresh]) > 0.9


@pytest.mark.parametrize("name", ["words", "pieces", "task"])
def test_it_learns_a_rule_from_one_source(name: str) -> None:
    draws = random.Random(1)
    expert = expert_of()
    telling = {7: 1, 8: 2}

    def numbers() -> tuple[int, ...]:
        mixed = [draws.choice((7, 8)), *(draws.randrange(100, 120) for _ in range(3))]
        draws.shuffle(mixed)
        return tuple(mixed)

    def rule(seen: Situation) -> int:
        return next(telling[number] for number in getattr(seen, name) if number in telling)

    teach(expert, rule, 300, draws, agents=lambda: (draws.choice(AGENTS[:2]),), **{name: numbers}, finished=lambda: True)
    fresh = [situation(draws, agents=(AGENTS[0],), **{name: numbers()}, finished=True) for _ in range(100)]
    found = expert.forecast([expert.features(seen) for seen in fresh])[:, 0].argmax(axis=1)
    assert np.mean(found == [rule(seen) for seen in fresh]) > 0.9


def test_forecasts_add_up_to_one_and_leave_some_probability_to_new_outcomes() -> None:
    found = asked(taught())
    assert found.shape == (12, 3, 5)
    assert found.sum(axis=2) == pytest.approx(np.ones((12, 3)), abs=1e-5)
    assert (found > 0).all()
    assert found[:, 0, 0].max() < 0.2  # no workflow has ended


def test_forecasts_together_are_those_made_one_by_one() -> None:
    expert, draws = taught(), random.Random(5)
    features = [expert.features(situation(draws)) for _ in range(30)]
    together = expert.forecast(features)
    assert together == pytest.approx(np.concatenate([expert.forecast([each]) for each in features]), abs=1e-6)


def test_equal_examples_give_equal_forecasts() -> None:
    assert np.array_equal(asked(taught()), asked(taught()))
    assert not np.array_equal(asked(taught()), asked(taught(seed=1)))


def test_situations_before_and_after_an_output_are_learnt_separately() -> None:
    draws = random.Random(2)
    before = situation(draws, finished=False)
    after = Situation(**{name: getattr(before, name) for name in Situation.__slots__ if name != "finished"}, finished=True)
    expert = expert_of()
    for _ in range(20):
        expert.learn(
            [TrainingExample(expert.features(before), (1, -1, -1)), TrainingExample(expert.features(after), (2, -1, -1))]
        )
    assert expert.forecast([expert.features(before), expert.features(after)])[:, 0].argmax(axis=1).tolist() == [1, 2]


def test_a_restored_expert_forecasts_the_same() -> None:
    expert, other = taught(), expert_of()
    state = encoding.from_bytes(encoding.to_bytes(expert.dump()))
    assert len(state["table"]["weights"]) < 4096  # only rows in use
    other.restore(state)
    assert np.array_equal(asked(expert), asked(other))
    for each in (expert, other):  # earlier examples, which are saved too, are learnt again with it
        each.reseed()
        each.learn([TrainingExample(other.features(Situation(("plan",))), (1, 0, 0))])
    assert np.array_equal(asked(expert), asked(other))
    fresh = expert_of()
    fresh.restore(expert_of().dump())
    assert np.array_equal(asked(fresh), asked(expert_of()))


@pytest.mark.parametrize(
    ("part", "name", "damage"),
    [
        ("table", "weights", lambda array: array * np.nan),
        ("table", "weights", lambda array: array[:, :2]),
        ("table", "weights", lambda array: array[:-1]),
        ("table", "weights", lambda array: array + 1.0),  # row 0 stands for no row
        ("table", "squares", lambda array: -array),
        ("table", "squares", lambda array: array[:, :, :-1]),
        ("table", "hashes", lambda array: array + HASHES),
        ("table", "hashes", lambda array: array * 0),
        ("table", "rows", lambda array: array * 1000),
        ("table", "rows", lambda array: array * 0),
        ("table", "rows", lambda array: array[:-1]),
        ("table", "rows", lambda array: array.astype(float)),
        ("", "records", lambda array: array[:-1]),
        ("", "records", lambda array: array + np.uint16(300)),
        ("", "records", lambda array: array.astype(float)),
        ("", "records", lambda _: None),
        ("", "targets", lambda array: array[:-1]),
        ("", "targets", lambda array: array[:, :-1]),
        ("", "targets", lambda array: array + 100),
        ("places", "places", lambda array: array[::-1]),
        ("places", "places", lambda array: array * 0),
        ("places", "counts", lambda array: array - 1e9),
        ("places", "counts", lambda _: None),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(part: str, name: str, damage: Callable[[Any], Any]) -> None:
    expert = taught(seed=1)
    before, state = asked(expert), taught().dump()
    damaged = state[part] if part else state
    damaged[name] = damage(damaged[name])
    for wrong in (state, {}, {"table": state["table"]}):
        with pytest.raises(ValueError, match=r"do not fit|does not fit|are missing"):
            expert.restore(wrong)
    assert np.array_equal(asked(expert), before)


def test_what_was_learnt_of_a_label_leaves_with_it() -> None:
    expert = taught()
    before = asked(expert)
    expert.labels = labels_of("code", "review")
    expert.renumber([0, 2, 4])
    after = asked(expert)
    ratios = after / after[:, :, :1]
    assert ratios == pytest.approx((before / before[:, :, :1])[:, :, [0, 2, 4]], rel=1e-3)
    teach(expert, lambda _: 2, 20, random.Random(3))  # earlier examples of labels that have left are not learnt again


def test_the_latest_examples_are_saved_even_when_labels_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_module, "MAX_RECENT", 8)
    monkeypatch.setattr(expert_module, "MAX_SAVED", 4)
    expert = expert_of()
    for number in range(12):
        if number == 11:
            expert.renumber(range(len(expert.labels)))
        expert.learn([TrainingExample(expert.features(Situation(("plan",), step=number)), (1, 1, 1))])
        saved = split(expert.dump()["records"])
        assert saved == [expert.features(Situation(("plan",), step=each)) for each in range(max(0, number - 3), number + 1)]


def test_with_many_labels_memory_is_bounded_and_frequent_ones_have_classes() -> None:
    draws = random.Random(4)
    names = [f"agent {number}" for number in range(1000)]
    expert = expert_of(*names)
    for number in range(400):  # the last columns are the most frequent
        seen = situation(draws, call_sites=(str(number % 2),))
        column = 999 + number % 2 if number % 4 < 2 else draws.randrange(1001)
        expert.learn([TrainingExample(expert.features(seen), (column, column, column))])
    found = expert.forecast([expert.features(situation(draws, call_sites=(str(number % 2),))) for number in range(40)])
    assert found.shape == (40, 3, 1001)
    assert found.sum(axis=2) == pytest.approx(np.ones((40, 3)), abs=1e-4)
    assert (found > 0).all()
    assert np.mean(found[:, 0].argmax(axis=1) == [999 + number % 2 for number in range(40)]) > 0.8
    assert expert.nbytes < 16 << 20
    fresh = expert_of(*names)
    fresh.restore(expert.dump())
    sought = expert.features(situation(draws))
    assert np.array_equal(fresh.forecast([sought]), expert.forecast([sought]))
    kept = [0, *range(500, 1001)]
    expert.labels = labels_of(*names[499:])
    expert.renumber(kept)
    assert expert.forecast([sought])[0, 0, -1] > 0.05  # still has a class
    expert.labels = labels_of(*names[-10:])
    expert.renumber([0, *range(492, 502)])
    found = expert.forecast([sought])
    assert found.shape == (1, 3, 11)
    assert found.sum(axis=2) == pytest.approx(np.ones((1, 3)), abs=1e-5)


def test_a_workload_that_has_seen_little_is_small() -> None:
    assert taught().nbytes < 2 << 20
