"""Forecasts as KV hints: envelopes of actions, for other software that routes requests and caches KV.

A hint says what a forecast says: which agents a workflow calls next, and whether it continues. The predictor never sees prompts
or blocks, so a hint names no block hashes: its receiver applies it to the KV that it has of that workflow, which these messages
call a session.

    retain    a signal: how likely the session's KV is used again, and by which agents. Keep KV with higher scores.
    prefetch  a command: this agent probably runs next. Load its KV while there is room.
    demote    a signal: the session has ended. Evict its KV first.

Only a trusted orchestrator may attach hints to requests; hints from clients must be ignored.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgpack

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast

PROTOCOL_VERSION = "0.1"
ACTION_VERSION = "1.0"
RETAIN, PREFETCH, DEMOTE = "retain", "prefetch", "demote"

_DIGITS = 6  # of probabilities, which are 32-bit floats


@dataclass(frozen=True, slots=True)
class KvHintAction:
    """One hint. Two with the same id are the same hint."""

    action_id: str
    action_type: str
    action_version: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KvHintsEnvelope:
    """The hints of one forecast."""

    protocol_version: str
    message_id: str
    actions: tuple[KvHintAction, ...]


@dataclass(frozen=True, slots=True)
class HintMaker:
    """Makes envelopes from forecasts."""

    gamma: float = 0.7  # discount of each further step
    half_life_s: float = 60.0  # after which a forecast counts half; also the time to live of its hints
    prefetch_probability: float = 0.5  # an agent that is less likely to run next gets no prefetch

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of its range.
        """
        checks.share("gamma", self.gamma)
        if not (self.half_life_s > 0 and math.isfinite(self.half_life_s)):
            raise InvalidArgument("half_life_s", f"must be a positive number of seconds, got {self.half_life_s}")
        checks.share("prefetch_probability", self.prefetch_probability)

    def envelope(self, forecast: Forecast) -> KvHintsEnvelope:
        """The hints of one forecast."""
        if forecast.ended:
            actions = [(DEMOTE, {"kind": "signal", "priority": 0.0, "reason": "session_ended"})]
        else:
            actions = [(RETAIN, self._retain(forecast)), *((PREFETCH, hint) for hint in self._prefetches(forecast))]
        common = self._common(forecast)
        # Each forecast of a workflow has an epoch of its own, so the ids are unique.
        return KvHintsEnvelope(
            PROTOCOL_VERSION,
            f"{forecast.epoch}:{forecast.workflow}",
            tuple(
                KvHintAction(f"{forecast.epoch}.{number}:{forecast.workflow}", kind, ACTION_VERSION, common | payload)
                for number, (kind, payload) in enumerate(actions)
            ),
        )

    def _common(self, forecast: Forecast) -> dict[str, Any]:
        """The fields of every hint."""
        common: dict[str, Any] = {"session_id": forecast.workflow, "epoch": forecast.epoch, "made_at_s": forecast.made_at}
        if not forecast.ended:
            common |= {"ttl_s": self.half_life_s, "expires_at_s": forecast.made_at + self.half_life_s}
        return common

    def _retain(self, forecast: Forecast) -> dict[str, Any]:
        total, reached, agents, discount = 0.0, 0.0, dict[str, float](), 1.0
        for step in forecast.steps:
            total += discount
            reached += discount * step.survival
            for agent, probability in step.agents.items():
                agents[agent] = agents.get(agent, 0.0) + discount * step.survival * probability
            discount *= self.gamma
        ranked = sorted(agents.items(), key=lambda item: (-item[1], item[0]))
        payload: dict[str, Any] = {
            "kind": "signal",
            "priority": _share(reached, total),
            "reuse": {agent: _share(score, total) for agent, score in ranked},
            "steps": [
                {"survival": _rounded(step.survival), "agents": {agent: _rounded(p) for agent, p in step.agents.items()}}
                for step in forecast.steps
            ],
            "predictability": _rounded(forecast.predictability),
        }
        if forecast.step >= 0:
            payload["after_step"] = forecast.step
        return payload

    def _prefetches(self, forecast: Forecast) -> list[dict[str, Any]]:
        if not forecast.steps:
            return []
        first = forecast.steps[0]
        likely = [(agent, first.survival * probability) for agent, probability in first.agents.items()]
        return [
            {"kind": "command", "agent": agent, "probability": _rounded(probability)}
            for agent, probability in sorted(likely, key=lambda item: (-item[1], item[0]))
            if probability >= self.prefetch_probability
        ]


def forecast_of(action_type: str, payload: Mapping[str, Any]) -> Forecast | None:
    """The forecast that a hint was made of; None: it says less than a forecast (`prefetch`, or an action of others).

    Raises:
        InvalidArgument: a field of the payload is missing, or not what `HintMaker` writes there; names the field.
    """
    if action_type not in (RETAIN, DEMOTE):
        return None
    workflow = _text(payload, "session_id", "payload.session_id")
    epoch = _number(payload, "epoch")
    if action_type == DEMOTE:
        return Forecast(workflow, int(epoch), _number(payload, "made_at_s"), (), ended=True)
    steps = payload.get("steps")
    if not isinstance(steps, list):
        raise InvalidArgument("payload.steps", f"must be a list, got {type(steps).__name__}")
    return Forecast(
        workflow,
        int(epoch),
        _number(payload, "made_at_s"),
        tuple(_step(step, f"payload.steps[{number}]") for number, step in enumerate(steps)),
        _number(payload, "predictability"),
        int(_number(payload, "after_step")) if "after_step" in payload else -1,
    )


def to_json(envelope: KvHintsEnvelope) -> str:
    """JSON on one line."""
    return json.dumps(asdict(envelope), ensure_ascii=False, allow_nan=False)


def to_msgpack(envelope: KvHintsEnvelope) -> bytes:
    """MessagePack: a map with the names of the fields. Envelopes can be concatenated without separators."""
    packed: bytes = msgpack.packb(asdict(envelope))
    return packed


def from_json(data: str | bytes) -> KvHintsEnvelope:
    """Reads an envelope from JSON.

    Raises:
        InvalidArgument: the data is not an envelope of this version; names the field.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("envelope", f"is not JSON: {error}") from error
    return _envelope(value)


def from_msgpack(data: bytes) -> KvHintsEnvelope:
    """Reads an envelope from MessagePack.

    Raises:
        InvalidArgument: the data is not an envelope of this version; names the field.
    """
    try:
        value = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise InvalidArgument("envelope", f"is not MessagePack: {error or type(error).__name__}") from error
    return _envelope(value)


def _envelope(value: Any) -> KvHintsEnvelope:
    envelope = _mapping(value, "envelope")
    version = _text(envelope, "protocol_version", "protocol_version")
    if version != PROTOCOL_VERSION:
        raise InvalidArgument("protocol_version", f"must be {PROTOCOL_VERSION!r}, got {version!r}")
    actions = envelope.get("actions")
    if not isinstance(actions, list):
        raise InvalidArgument("actions", f"must be a list, got {type(actions).__name__}")
    return KvHintsEnvelope(
        version,
        _text(envelope, "message_id", "message_id"),
        tuple(_action(action, f"actions[{number}]") for number, action in enumerate(actions)),
    )


def _action(value: Any, field: str) -> KvHintAction:
    action = _mapping(value, field)
    named = {name: _text(action, name, f"{field}.{name}") for name in ("action_id", "action_type", "action_version")}
    return KvHintAction(**named, payload=_mapping(action.get("payload"), f"{field}.payload"))


def _mapping(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument(field, f"must be a map with names for keys, got {type(value).__name__}")
    return value


def _text(values: Mapping[str, Any], name: str, field: str) -> str:
    text = values.get(name)
    if not isinstance(text, str) or not text:
        raise InvalidArgument(field, "must be a string that is not empty")
    return text


def _number(values: Mapping[str, Any], name: str, prefix: str = "payload") -> float:
    number = values.get(name)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InvalidArgument(f"{prefix}.{name}", f"must be a finite number, got {number!r}")
    return number


def _step(value: Any, field: str) -> StepForecast:
    step = _mapping(value, field)
    agents = _mapping(step.get("agents"), f"{field}.agents")
    named = {agent: _number(agents, agent, f"{field}.agents") for agent in agents}
    survival = _number(step, "survival", field)
    if not all(0.0 <= probability <= 1.0 for probability in (survival, *named.values())):
        raise InvalidArgument(field, "must hold probabilities, from 0 to 1")
    return StepForecast(named, survival)


def _share(part: float, whole: float) -> float:
    return _rounded(part / whole) if whole else 0.0


def _rounded(probability: float) -> float:
    return round(probability, _DIGITS)
