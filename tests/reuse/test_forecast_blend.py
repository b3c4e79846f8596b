"""What comes next from two sources, and how far each is trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.workflow.access_log import NO_ATTACH
from pbkv_cluster.reuse.model.next_event import END, Event
from pbkv_cluster.reuse.rank.forecast_blend import Agents, Trust, blend, by_agent, of_forecast

NAMES = ("planner", "coder", "tester", END[0])
chances = st.floats(0.0, 1.0)


def scaled(values: dict[Event, float]) -> dict[Event, float]:
    total = sum(values.values())
    return {event: chance / max(total, 1.0) for event, chance in values.items()}


events = st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(0, 2)), chances, max_size=8).map(scaled)
agents = st.dictionaries(st.sampled_from(NAMES), chances, max_size=4).map(
    lambda each: by_agent(scaled({(agent, 0): chance for agent, chance in each.items()}))
)


@given(events, agents, chances)
def test_each_agent_is_between_what_both_say(model: dict[Event, float], forecast: Agents, share: float) -> None:
    own = by_agent(model)
    both = by_agent(blend(model, own, forecast, share))
    assert set(both) == {*own, *forecast}
    for agent, chance in both.items():
        low, high = sorted((own.get(agent, 0.0), forecast.get(agent, 0.0)))
        assert low * (1.0 - 1e-9) <= chance + 1e-100  # the product of two that are smaller is 0
        assert chance <= high * (1.0 + 1e-9)
    assert sum(both.values()) <= 1.0 + 1e-9


@given(events, agents)
def test_a_share_of_nothing_or_of_all(model: dict[Event, float], forecast: Agents) -> None:
    own = by_agent(model)
    alone = blend(model, own, forecast, 0.0)
    assert {event: alone[event] for event in model} == model
    assert all(chance == 0.0 for event, chance in alone.items() if event not in model)
    other = by_agent(blend(model, own, forecast, 1.0))
    for agent, chance in forecast.items():
        if own.get(agent, 1.0) > 1e-9:  # of an agent that never comes the model cannot say how
            assert other[agent] == pytest.approx(chance)


def test_where_a_prompt_leaves_the_known_is_for_the_model_to_say() -> None:
    model: dict[Event, float] = {("planner", 1): 0.6, ("planner", 2): 0.2, END: 0.2}
    blended = blend(model, by_agent(model), {"planner": 0.4, "coder": 0.5, END[0]: 0.1}, 0.5)
    assert blended == pytest.approx(
        {("planner", 1): 0.3 + 0.15, ("planner", 2): 0.1 + 0.05, END: 0.15, ("coder", NO_ATTACH): 0.25}
    )


def test_trust_goes_to_the_better_and_comes_back() -> None:
    trust, right, wrong = Trust(), {"planner": 0.9}, {"coder": 0.9}
    assert trust.share == 0.5

    def after(outcomes: int, model: Agents, forecast: Agents) -> float:
        for _ in range(outcomes):
            trust.score("planner", model, forecast)
        return trust.share

    assert after(5, wrong, right) > 0.95
    certain = after(2000, wrong, right)
    assert 0.99 < certain < 1.0
    assert after(40, right, wrong) < 0.5, "what was long ago has faded"
    assert after(40, right, wrong) < 0.01
    assert after(60, wrong, right) > 0.9


@given(st.lists(st.tuples(st.sampled_from(NAMES), agents, agents), max_size=50))
def test_trust_stays_a_share(outcomes: list[tuple[str, Agents, Agents]]) -> None:
    trust = Trust()
    for agent, model, forecast in outcomes:
        before = trust.share
        trust.score(agent, model, forecast)
        assert 0.0 < trust.share < 1.0
        if model.get(agent, 0.0) == forecast.get(agent, 0.0):
            assert abs(trust.share - 0.5) <= abs(before - 0.5), "equally right: what was before fades"


@given(agents, chances)
def test_a_forecast_tells_its_first_step_and_the_end(first: Agents, survival: float) -> None:
    steps = (StepForecast(first, survival), StepForecast({"tester": 1.0}, 0.5))
    found = of_forecast(Forecast("w", 1, 0.0, steps))
    if not first:
        assert found == {}
    else:
        assert found[END[0]] == 1.0 - survival
        assert {agent: chance for agent, chance in found.items() if agent != END[0]} == {
            agent: chance * survival for agent, chance in first.items() if agent != END[0]
        }
    assert of_forecast(None) == of_forecast(Forecast("w", 1, 0.0, ())) == {}
