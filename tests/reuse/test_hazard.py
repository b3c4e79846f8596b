"""The hazard model: against a naive one that mixes and counts with loops, and on patterns that leave no doubt."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.reuse.model.contexts import CONTEXTS, context_rows
from pbkv_cluster.reuse.model.features import Fact, Ints
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, BINS, Floats, HazardModel, first_use

BITS = HazardModel.rows().bit_length() - 1
RATE, WEIGHT, PRIOR = 0.003, 0.08, 0.1

facts = st.integers(0, 3).map(lambda seed: np.random.default_rng(seed).integers(-1, 9, len(Fact)))
example = st.tuples(facts, st.integers(0, 3), st.integers(0, 30), st.integers(1, 60))
workflows = st.lists(example, min_size=1, max_size=5).map(lambda each: sorted(each, key=lambda one: one[1]))


def columns(workflow: list[tuple[Ints, int, int, int]]) -> tuple[Ints, Ints, Ints, Ints]:
    rows, when, distance, blocks = zip(*workflow, strict=True)
    return np.array(rows), np.array(when), np.array(distance), np.array(blocks)


def bin_of(distance: int) -> int:
    """BINS: never."""
    return max(at for at in range(BINS) if BIN_STARTS[at] <= distance) if distance else BINS


class Naive:
    """The model, one example after the other."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])  # row and bin: at risk, uses
        self.weights = [[[WEIGHT] * 8 for _ in range(BINS)] for _ in CONTEXTS]

    def look(self, row: int, at: int) -> tuple[float, int]:
        at_risk, uses = self.counts[row, at]
        return math.log((uses + PRIOR) / (at_risk - uses + PRIOR)), min(int(math.log2(at_risk + 1.0)), 7)

    def hazard(self, row: Ints, at: int) -> float:
        mixed = 0.0
        for context, place in enumerate(context_rows(row[None], BITS)[0].tolist()):
            opinion, level = self.look(place, at)
            mixed += self.weights[context][at][level] * opinion
        return 1.0 / (1.0 + math.exp(-max(-12.0, min(12.0, mixed))))

    def learn(self, workflow: list[tuple[Ints, int, int, int]]) -> None:
        for when in sorted({each[1] for each in workflow}):
            part = [each for each in workflow if each[1] == when]
            importances = [min(2.0, 0.25 + blocks / 8.0) for *_, blocks in part]
            rate = RATE / max(1.0, sum(importances) / 8.0)
            steps: dict[tuple[int, int, int], float] = defaultdict(float)
            for (row, _, distance, _), importance in zip(part, importances, strict=True):
                for at in range(min(bin_of(distance), BINS - 1) + 1):
                    error = (at == bin_of(distance)) - self.hazard(row, at)
                    for context, place in enumerate(context_rows(row[None], BITS)[0].tolist()):
                        opinion, level = self.look(place, at)
                        steps[context, at, level] += rate * error * importance * opinion
            for (context, at, level), step in steps.items():
                self.weights[context][at][level] += step
        for row, _, distance, blocks in workflow:
            for place in context_rows(row[None], BITS)[0].tolist():
                for at in range(min(bin_of(distance), BINS - 1) + 1):
                    self.counts[place, at][0] += min(1.0, 0.25 + blocks / 8.0)
                    self.counts[place, at][1] += min(1.0, 0.25 + blocks / 8.0) * (at == bin_of(distance))


@settings(max_examples=25, deadline=None)
@given(st.lists(workflows, min_size=1, max_size=4))
def test_it_learns_what_the_naive_model_learns(taught: list[list[tuple[Ints, int, int, int]]]) -> None:
    model, naive = HazardModel(), Naive()
    for workflow in taught:
        model.learn(*columns(workflow))
        naive.learn(workflow)
    rows = columns(taught[-1])[0]
    expected = [[naive.hazard(row, at) for at in range(BINS)] for row in rows]
    assert model.hazards(rows) == pytest.approx(np.array(expected), rel=1e-3)
    assert model.weights == pytest.approx(np.array(naive.weights), rel=1e-3, abs=1e-6)


def test_many_examples_of_one_step_move_the_weights_no_further_than_few() -> None:
    row = np.arange(len(Fact))
    crowd = [(row, 0, 1, 60)] * 12
    model, naive = HazardModel(), Naive()
    for _ in range(3):
        model.learn(*columns(crowd))
        naive.learn(crowd)
    assert model.weights == pytest.approx(np.array(naive.weights), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(workflows, min_size=1, max_size=3), workflows)
def test_hazards_are_probabilities_and_only_the_rows_named_change(
    before: list[list[tuple[Ints, int, int, int]]], last: list[tuple[Ints, int, int, int]]
) -> None:
    model = HazardModel()
    for workflow in before:
        model.learn(*columns(workflow))
    at_risk, uses = model.at_risk.copy(), model.uses.copy()
    changed = model.learn(*columns(last))
    assert (np.diff(changed) > 0).all()
    for now, then in ((model.at_risk, at_risk), (model.uses, uses)):
        assert set(np.flatnonzero((now != then).any(axis=1)).tolist()) <= set(changed.tolist())
    assert (model.at_risk[changed] != at_risk[changed]).any(axis=1).all()
    assert (model.uses <= model.at_risk).all()
    hazards = model.hazards(columns(last)[0])
    assert ((hazards > 0.0) & (hazards < 1.0)).all()
    copy = HazardModel()
    copy.put(np.arange(HazardModel.rows(), dtype=np.int32), model.at_risk, model.uses, model.weights)
    for workflow in (*before, last):
        facts_ = columns(workflow)[0]
        assert (model.hazards(facts_) == copy.hazards(facts_)).all(), "they follow from the counts and weights alone"


def learnt(distance: int, times: int = 60) -> tuple[HazardModel, Ints]:
    """A model that has seen segments of the same facts used so many steps later, again and again; and one such row."""
    model, row = HazardModel(), np.arange(len(Fact))[None]
    for _ in range(times):
        model.learn(np.repeat(row, 3, axis=0), np.arange(3), np.full(3, distance), np.full(3, 8))
    return model, row


@pytest.mark.parametrize(("distance", "expected"), [(1, 0), (2, 1), (4, 3), (6, 4), (20, 6), (500, 7)])
def test_what_always_comes_after_so_many_steps_is_expected_then(distance: int, expected: int) -> None:
    model, row = learnt(distance)
    probability = first_use(model.hazards(row))[0]
    assert probability[expected] > 0.95
    assert probability.sum() - probability[expected] < 0.03


def test_what_never_comes_is_not_expected() -> None:
    model, row = learnt(0)
    assert first_use(model.hazards(row)).sum() < 0.03


def test_before_anything_is_learnt_every_hazard_is_one_half() -> None:
    assert (HazardModel().hazards(np.arange(2 * len(Fact)).reshape(2, -1)) == 0.5).all()


def test_a_workflow_is_foretold_before_it_is_counted() -> None:
    model, row = HazardModel(), np.zeros((1, len(Fact)), dtype=np.int64)
    rows = np.repeat(row, 5, axis=0)
    model.learn(rows, np.arange(5), np.ones(5, dtype=np.int64), np.full(5, 8))
    # Nobody had an opinion of these examples, and so nobody was right or wrong; of their own outcome they know nothing.
    assert (model.weights == np.float32(WEIGHT)).all()
    model.learn(row, np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64), np.full(1, 8))
    assert (model.weights != np.float32(WEIGHT)).any()


def test_what_happened_lately_weighs_more() -> None:
    model, row = learnt(1, times=700)
    assert 500.0 < model.at_risk.max() <= 1003.0
    for _ in range(1200):
        model.learn(row, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.full(1, 8))
    assert model.hazards(row)[0, 0] < 0.5, "1,200 times never outweighs 2,100 times at once"


def test_what_is_put_is_what_the_source_has() -> None:
    source, copy = learnt(2, times=5)[0], HazardModel()
    source.learn(np.zeros((1, len(Fact)), dtype=np.int64), np.zeros(1, dtype=np.int64), np.full(1, 7), np.full(1, 2))
    places = np.flatnonzero(source.at_risk[:, 0]).astype(np.int32)
    copy.put(places, source.at_risk[places], source.uses[places], source.weights)
    for name in ("at_risk", "uses", "weights"):
        assert (getattr(copy, name) == getattr(source, name)).all()
    rows = np.arange(2 * len(Fact)).reshape(2, -1)
    assert (copy.hazards(rows) == source.hazards(rows)).all()


hazards = st.lists(st.lists(st.floats(0.0, 1.0), min_size=BINS, max_size=BINS), min_size=1, max_size=3).map(np.array)


@given(hazards)
def test_the_first_use_is_the_product(rows: Floats) -> None:
    found = first_use(rows)
    for row, probability in zip(rows, found, strict=True):
        for at in range(BINS):
            assert probability[at] == pytest.approx(row[at] * math.prod(1.0 - hazard for hazard in row[:at]))
        assert probability.sum() + math.prod(1.0 - hazard for hazard in row) == pytest.approx(1.0)
    assert rows.shape == found.shape
