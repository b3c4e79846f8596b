"""Fields that tell an engine of workflow and forecast. Engines may refuse those that they do not know: each is switched on."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pbkv_cluster.core.config import SidecarEngine
from pbkv_cluster.core.config.engines import Hint
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.sidecar.reading.asked import Asked


@dataclass(frozen=True, slots=True)
class HintedStep:
    """What an engine can be told of a step."""

    workflow: str
    agent: str
    forecast: Forecast | None


class HintWriter:
    """Writes fields into bodies, and leaves all other bytes of them as they are."""

    def __init__(self, maker: HintMaker) -> None:
        """`maker`: makes `kv_hints` of forecasts."""
        self.sent: Counter[str] = Counter()  # by field
        self._maker = maker

    def body(self, body: bytes, asked: Asked, engine: SidecarEngine, step: HintedStep) -> bytes:
        """The body for an engine. Fields that the client has set are its own.

        Args:
            body: as it came in, a JSON object.
            asked: the same, read.
            engine: says which fields it takes.
            step: that is asked for.
        """
        added: dict[str, Any] = {}
        for name in engine.hints:
            value = self._value(name, asked, engine, step)
            if name not in asked.fields and value is not None:
                added[name] = value
                self.sent[name] += 1
        if not added or not asked.fields:
            return body
        at = body.index(b"{") + 1
        return body[:at] + json.dumps(added)[1:-1].encode() + b", " + body[at:]

    def _value(self, name: Hint, asked: Asked, engine: SidecarEngine, step: HintedStep) -> Any:
        match name:
            case "cache_salt":
                return cache_salt(asked)
            case "priority":
                return (asked.hints.priority if engine.kind == "sglang" else -asked.hints.priority) or None
            case "session_id":
                return step.workflow
            case "kv_hints":
                return None if step.forecast is None else asdict(self._maker.envelope(step.forecast))
            case "kv_transfer_params":
                # What `pbkv_cluster`'s plug-ins for engines read.
                named = {"workflow": step.workflow, "agent": step.agent, "workload": asked.hints.workload}
                told: dict[str, Any] = {key: value for key, value in named.items() if value}
                if asked.hints.final and not asked.hints.parent_session:
                    told["final"] = True
                return {"pbkv": told}


def cache_salt(asked: Asked) -> str | None:
    """The salt that keeps a tenant's blocks apart; None: it has no tenant."""
    return asked.hints.tenant or None
