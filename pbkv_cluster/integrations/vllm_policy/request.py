"""A request as vLLM shows it to a cache policy: its chunks in the order of the prompt, and the workflow that it names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.integrations.kv_hints import forecast_of
from pbkv_cluster.integrations.vllm_policy.chunk_order import group_of, hash_of

log = logging.getLogger(__name__)

PARAMETER = "pbkv"
"""Key of our part of `kv_transfer_params`."""

StateT = TypeVar("StateT")

_FIELDS = ("workflow", "agent", "workload", "final")


class RequestContext(Protocol):
    """What is used of vLLM's `ReqContext`."""

    req_id: str
    kv_transfer_params: dict[str, Any] | None
    kv_hints: Any  # vLLM's `KvHintsEnvelope`, or None
    _offload_key_positions: dict[Any, int]  # end of each chunk's tokens; the scheduler enters the chunks of the whole prompt

    def get_state(self, cls: type[StateT], /) -> StateT | None:
        """What was put aside for this request."""

    def set_state(self, val: Any, /) -> None:
        """Puts something aside for this request."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What a request says of its workflow. Empty: it does not say."""

    workflow: str = ""
    agent: str = ""
    workload: str = ""
    final: bool = False  # it is the last one of its workflow


def naming_of(context: RequestContext) -> Naming:
    """Reads `kv_transfer_params["pbkv"]` and, where that names no workflow, the session of the hints.

    What cannot be read is logged and left out: a request must not fail for a hint.
    """
    given: Any = (context.kv_transfer_params or {}).get(PARAMETER)
    try:
        naming = Naming() if given is None else _naming(given)
    except InvalidArgument as error:
        log.warning("request %s names no workflow: kv_transfer_params.%s", context.req_id, error)
        naming = Naming()
    if naming.workflow:
        return naming
    sessions = {action.payload.get("session_id") for action in _actions(context)}
    session = sessions.pop() if len(sessions) == 1 else None
    return Naming(session, naming.agent, naming.workload, naming.final) if isinstance(session, str) else naming


def forecasts_of(context: RequestContext) -> Iterator[Forecast]:
    """The forecasts in the hints that a request carries."""
    for action in _actions(context):
        try:
            forecast = forecast_of(action.action_type, action.payload)
        except InvalidArgument as error:
            log.warning("request %s: a hint is ignored: %s", context.req_id, error)
            continue
        if forecast is not None:
            yield forecast


class RequestChunks:
    """The chunks of a request's first KV cache group, which stand for those of all groups."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        self._number: dict[bytes, int] = {}  # of each hash

    def update(self, context: RequestContext) -> None:
        """Adds the chunks that the scheduler has entered since."""
        positions = context._offload_key_positions
        if not positions:
            return
        first = min(map(group_of, positions))
        own = sorted((end, hash_of(key)) for key, end in positions.items() if group_of(key) == first)
        for _, block_hash in own[len(self.hashes) :]:
            self._number[block_hash] = len(self.hashes)
            self.hashes.append(block_hash)

    def reach(self, keys: Iterable[bytes]) -> int:
        """Number of the first chunks down to the last one of these."""
        return max((self._number.get(hash_of(key), -1) for key in keys), default=-1) + 1


def _actions(context: RequestContext) -> Iterable[Any]:
    return () if context.kv_hints is None else context.kv_hints.actions


def _naming(given: object) -> Naming:
    if not isinstance(given, Mapping):
        raise InvalidArgument(PARAMETER, f"must be an object, got {type(given).__name__}")
    if unknown := given.keys() - set(_FIELDS):
        raise InvalidArgument(f"{PARAMETER}.{min(map(str, unknown))}", f"is unknown; must be one of {', '.join(_FIELDS)}")
    names = dict[str, str]()
    for field in _FIELDS[:-1]:
        value = given.get(field, "")
        if not isinstance(value, str):
            raise InvalidArgument(f"{PARAMETER}.{field}", f"must be a string, got {type(value).__name__}")
        checks.name(f"{PARAMETER}.{field}", value)
        names[field] = value
    final = given.get("final", False)
    if not isinstance(final, bool):
        raise InvalidArgument(f"{PARAMETER}.final", f"must be true or false, got {final!r}")
    return Naming(**names, final=final)
