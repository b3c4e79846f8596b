"""The model that is served, by the name that clients give it."""

import time
from dataclasses import dataclass, field
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
        """As in the list of models."""
        entry: dict[str, Any] = {"id": self.name, "object": "model", "created": self.created, "owned_by": "pbkv"}
        return entry if max_context_tokens is None else {**entry, "max_model_len": max_context_tokens}
