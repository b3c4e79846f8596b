"""The next event from two sources: the workflow's own record under the next-event model, and the predictor's forecast.

A forecast names agents only; the model says where their prompts would attach. How far each is trusted follows from how well it
has predicted agents lately: the weights of Hedge over two experts, with losses that fade (Freund and Schapire, JCSS 55(1),
1997; Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.access_log import NO_ATTACH
from pbkv_cluster.reuse.model.next_event import END, Event

_RATE = 0.3
_MEMORY = 0.98  # factor on past losses, for each new outcome
_PROBABILITY_MIN = 1e-3  # of any outcome, so that no loss is infinite

Agents = dict[str, float]
"""Probability of each agent, and of END's name for the end."""


class Trust:
    """How far forecasts are trusted, compared with the model."""

    def __init__(self) -> None:
        self._lead = 0.0  # of the forecast over the model, in nats, with past outcomes faded

    @property
    def share(self) -> float:
        """Weight of the forecast, in (0, 1)."""
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, _RATE * self._lead))))

    def score(self, agent: str, model: Agents, forecast: Agents) -> None:
        """Compares what model and forecast had predicted, now that `agent` was called next."""
        self._lead = _MEMORY * self._lead + (_log(forecast, agent) - _log(model, agent))


def _log(agents: Agents, agent: str) -> float:
    return math.log(max(agents.get(agent, 0.0), _PROBABILITY_MIN))


def by_agent(events: Mapping[Event, float]) -> Agents:
    """Probability of each agent, whatever its prompt."""
    found: Agents = {}
    for (agent, _), probability in events.items():
        found[agent] = found.get(agent, 0.0) + probability
    return found


def top_two_by_agent(events: Mapping[Event, float]) -> dict[Event, float]:
    """The two likeliest events of each agent, or fewer; ties fall by name.

    A forecast rescales all events of an agent alike, so the two likeliest events of a blend are always among these.
    """
    best: dict[str, list[tuple[float, Event]]] = {}
    for event, probability in events.items():
        best.setdefault(event[0], []).append((-probability, event))
    return {event: -negated for each in best.values() for negated, event in sorted(each)[:2]}


def of_forecast(forecast: Forecast | None) -> Agents:
    """What a forecast says of the next step; empty: nothing."""
    if forecast is None or not forecast.steps or not forecast.steps[0].agents:
        return {}
    step = forecast.steps[0]
    found = {agent: probability * step.survival for agent, probability in step.agents.items()}
    found[END[0]] = 1.0 - step.survival
    return found


def blend(events: Mapping[Event, float], agents: Agents, forecast: Agents, share: float) -> dict[Event, float]:
    """The next event by both sources.

    Args:
        events: by the model.
        agents: the same by agent.
        forecast: probability of each agent by the forecast.
        share: weight of the forecast.
    """
    blended = {}
    for event, probability in events.items():
        predicted = forecast.get(event[0], 0.0) * probability / agents[event[0]] if probability else 0.0
        blended[event] = (1.0 - share) * probability + share * predicted
    for agent, probability in forecast.items():
        if agent not in agents:
            blended[agent, 0 if agent == END[0] else NO_ATTACH] = share * probability
    return blended
