"""The model that is served, by the name that clients give it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pbkv_cluster.gateway.http.wire.problems import NoSuchModel


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model of a cluster."""

    name: str
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since the epoch

    def check(self, name: str) -> None:
        """Raises:
        NoSuchModel: a request names another model.
        """
        if name != self.name:
            raise NoSuchModel(f"model {name[:256]!r} is not served here; this is {self.name!r} (gateway.http_model)")

    def to_json(self, max_context_tokens: int | None) -> dict[str, Any]:
        """As OpenAI's API has it, with what Anthropic's has beside that at the same path."""
        entry: dict[str, Any] = {"id": self.name, "object": "model", "created": self.created, "owned_by": "pbkv"}
        created_at = datetime.fromtimestamp(self.created, UTC).isoformat()
        entry |= {"type": "model", "display_name": self.name, "created_at": created_at, "lifecycle": "active"}
        if max_context_tokens is not None:
            entry |= {"max_model_len": max_context_tokens, "max_input_tokens": max_context_tokens}
        return entry


def list_json(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All models, likewise for both APIs."""
    ids = [entry["id"] for entry in entries]
    return {"object": "list", "data": list(entries), "has_more": False, "first_id": ids[0], "last_id": ids[-1]}
