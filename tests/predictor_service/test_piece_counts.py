"""Which pieces several workflows share."""

import pytest

from pbkv_cluster.predictor_service.workload import piece_counts
from pbkv_cluster.predictor_service.workload.piece_counts import PieceCounts


def test_a_piece_is_known_from_the_third_workflow_on() -> None:
    counts = PieceCounts()
    assert counts.known([1, 2], "a") == ()
    assert counts.known([1], "a") == ()  # the same workflow
    assert counts.known([1], "b") == ()
    assert counts.known([2, 1], "c") == (1,)
    assert counts.known([3, 2, 1], "d") == (2, 1)


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_counts, "MAX_PIECES", 8)
    counts = PieceCounts()
    for workflow in "abc":
        counts.known(range(8), workflow)
    assert counts.dump() == {"known": list(range(8))}
    for workflow in "def":
        counts.known([100, 101, 102, 103, 0], workflow)  # now one generation is full
    assert counts.known(range(8), "g") == (0,), "a piece that was seen again stays, the others leave"
    assert counts.known([100, 103], "g") == (100, 103)
    for number in range(1000):
        counts.known([1000 + number], "x")
    assert counts.rare == 8


def test_what_is_known_is_kept() -> None:
    counts, again = PieceCounts(), PieceCounts()
    for workflow in "abc":
        counts.known([5, 6], workflow)
    again.restore(counts.dump())
    assert again.known([6, 7, 5], "z") == (6, 5)


@pytest.mark.parametrize("bad", [{}, {"known": "x"}, {"known": [1.5]}, {"known": [True]}])
def test_damage_is_refused(bad: dict[str, object]) -> None:
    counts = PieceCounts()
    with pytest.raises(ValueError, match="numbers"):
        counts.restore(bad)
