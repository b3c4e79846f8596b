"""What comes next, from two sources: the workflow's own record under the next-event model, and the predictor's forecast.

The forecast names agents only; the model says where their prompts would attach. How far either is trusted follows from how well
it has foretold agents lately: the weights of Hedge over two experts, with losses that fade (Freund and Schapire, JCSS 55(1),
1997; Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pbkv_cluster.core.access_log import NO_ATTACH
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.reuse.model.next_event import END, Event

_RATE = 0.3
_MEMORY = 0.98  # of a loss, from one outcome to the next
_FLOOR = 1e-3  # no outcome is held less likely than this

Agents = dict[str, float]
"""Probability of each agent, and of END's name for the end."""


class Trust:
    """How much the forecast's share is."""

    def __init__(self) -> None:
        self._lead = 0.0  # of the forecast over the model, in nats, old outcomes faded

    @property
    def share(self) -> float:
        """Weight of the forecast, in (0, 1)."""
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, _RATE * self._lead))))

    def seen(self, agent: str, model: Agents, forecast: Agents) -> None:
        """Both had said what would come, and `agent` did."""
        lead = math.log(max(forecast.get(agent, 0.0), _FLOOR)) - math.log(max(model.get(agent, 0.0), _FLOOR))
        self._lead = _MEMORY * self._lead + lead


def by_agent(events: Mapping[Event, float]) -> Agents:
    """Probability of each agent, whatever its prompt."""
    found: Agents = {}
    for (agent, _), chance in events.items():
        found[agent] = found.get(agent, 0.0) + chance
    return found


def foremost(events: Mapping[Event, float]) -> dict[Event, float]:
    """The two likeliest events of each agent, or fewer, ties by name.

    A forecast makes all events of an agent likelier alike: whatever it says, none but these come to the first two places.
    """
    best: dict[str, list[tuple[float, Event]]] = {}
    for event, chance in events.items():
        best.setdefault(event[0], []).append((-chance, event))
    return {event: -chance for each in best.values() for chance, event in sorted(each)[:2]}


def of_forecast(forecast: Forecast | None) -> Agents:
    """What a forecast says of the next step. Empty: nothing."""
    if forecast is None or not forecast.steps or not forecast.steps[0].agents:
        return {}
    step = forecast.steps[0]
    found = {agent: chance * step.survival for agent, chance in step.agents.items()}
    found[END[0]] = 1.0 - step.survival
    return found


def blend(events: dict[Event, float], agents: Agents, forecast: Agents, share: float) -> dict[Event, float]:
    """The next event by both.

    Args:
        events: by the model.
        agents: the same by agent.
        forecast: probability of each agent.
        share: of the forecast.
    """
    blended = {}
    for event, chance in events.items():
        foretold = forecast.get(event[0], 0.0) * chance / agents[event[0]] if chance else 0.0
        blended[event] = (1.0 - share) * chance + share * foretold
    for agent, chance in forecast.items():
        if agent not in agents:
            blended[agent, 0 if agent == END[0] else NO_ATTACH] = share * chance
    return blended
