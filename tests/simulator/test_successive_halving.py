"""Successive halving keeps to its budget, drops the worst, and runs the present settings everywhere."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.tuning.halving import candidates_max, search
from pbkv_cluster.simulator.tuning.result import Trial


class Runs:
    """Scores a candidate by its own value, and counts runs."""

    def __init__(self) -> None:
        self.count = 0

    def extend(self, trial: Trial, cells: Sequence[str]) -> Trial:
        new = len(cells) - len(trial.scores)
        self.count += new
        return Trial(trial.values, (*trial.scores, *[float(trial.values["a.b"])] * new))


@given(st.lists(st.integers(0, 99), min_size=2, max_size=40), st.integers(1, 12))
def test_the_best_candidate_and_the_present_settings_run_in_every_cell(scores: list[int], cells: int) -> None:
    runs = Runs()
    found = search([{"a.b": score} for score in scores], [f"cell {number}" for number in range(cells)], runs.extend)
    assert sorted(trial.values["a.b"] for trial in found) == sorted(scores)
    assert found[0].values["a.b"] == scores[0]
    assert found[1].values["a.b"] == max(scores[1:])
    assert len(found[0].scores) == len(found[1].scores) == cells
    lasted = [len(trial.scores) for trial in found[1:]]
    assert lasted == sorted(lasted, reverse=True)
    assert runs.count == sum(len(trial.scores) for trial in found)


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 5))
def test_as_many_candidates_run_as_the_budget_allows(budget: int, cells: int, policies: int) -> None:
    def runs(candidates: int) -> int:
        counter = Runs()
        search([{"a.b": 0}] * candidates, [""] * cells, counter.extend)
        return counter.count

    if runs(policies + 1) > budget:
        with pytest.raises(InvalidArgument, match="budget"):
            candidates_max(budget, cells, policies)
    else:
        most = candidates_max(budget, cells, policies)
        assert runs(most) <= budget
        assert most == budget or runs(most + 1) > budget
