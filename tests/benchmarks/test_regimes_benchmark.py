"""The map of situations changes one thing at a time, and tells whether the goals are met."""

import argparse
from dataclasses import fields

import pytest

from benchmarks.regimes import benchmark as regimes
from benchmarks.regimes.points import Point, points


def test_each_sweep_changes_one_thing_and_passes_the_first_situation() -> None:
    swept = list(points(quick=False))
    assert {name for name, _, _ in swept} == {item.name for item in fields(Point)}
    for name in {name for name, _, _ in swept}:
        assert [point for which, _, point in swept if which == name].count(Point()) == 1
    for name, value, point in swept:
        changed = {item.name for item in fields(Point) if getattr(point, item.name) != getattr(Point(), item.name)}
        assert changed <= {name}
        assert getattr(point, name) == value
    assert {point.agents for _, _, point in swept} == set(regimes.APPLICATIONS)


def test_a_map_has_four_figures_for_each_situation_and_goals_for_all() -> None:
    report = regimes.run(argparse.Namespace(quick=True))
    goals = {figure.name: figure.goal for figure in report.figures}
    assert goals == {
        "workflow latency, LRU's over its, mean of the situations": "≥ 1.15",
        "workflow latency, LRU's over its, best situation": "≥ 1.5",
        "workflow latency, LRU's over its, worst situation": "≥ 0.995",
        "first token, LRU's over its, mean of the situations": "",
        "first token, LRU's over its, best situation": "",
    }
    mean, best, worst = (figure.value for figure in report.figures[:3])
    assert worst <= mean <= best
    details = {figure.name: figure.value for figure in report.details}
    assert len(details) == 4 * len(list(points(quick=True)))
    assert best == max(value for name, value in details.items() if name.endswith(": workflow, LRU's / its"))
    assert all(0 < value < 1 for name, value in details.items() if "prefill's share" in name)


@pytest.mark.parametrize("agents", regimes.APPLICATIONS)
def test_with_room_for_all_nothing_is_computed_again(agents: int) -> None:
    recomputed, _, first_token, workflow = regimes.compare(Point(memory=9.0, agents=agents), 6)
    assert recomputed == 0.0
    assert (first_token, workflow) == pytest.approx((1.0, 1.0), abs=0.02)
