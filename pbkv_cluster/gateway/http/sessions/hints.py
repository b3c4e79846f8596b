"""What a request says of its workflow, in headers and body."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.security.caller import current_caller

WORKFLOW = "x-pbkv-workflow"
AGENT = "x-pbkv-agent"
CALL_SITE = "x-pbkv-call-site"
WORKLOAD = "x-pbkv-workload"
TENANT = "x-pbkv-tenant"
TIMEOUT = "x-pbkv-timeout"
SESSION = "x-dynamo-session-id"
PARENT_SESSION = "x-dynamo-parent-session-id"
SESSION_FINAL = "x-dynamo-session-final"
TRACE = "traceparent"
STEP = "x-pbkv-step"  # of answers
MAX_TIMEOUT_S = 86_400.0

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NO_TRACE = "0" * 32
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_METADATA = ("workflow", "agent", "call_site", "workload")


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client says of a step. Empty: nothing."""

    workflow: str = ""
    session: str = ""  # of Dynamo: a chain of steps of one agent
    parent_session: str = ""
    final: bool = False  # this is the last step of the session
    cache_key: str = ""
    trace: str = ""  # id of a W3C trace
    agent: str = ""
    call_site: str = ""
    workload: str = ""
    tenant: str = ""
    priority: int = 0
    timeout_s: float | None = None  # after which the client no longer waits; None: it has not said


def read_hints(
    headers: Mapping[str, str], metadata: Mapping[str, Any] | None = None, cache_key: str = "", priority: int | None = None
) -> Hints:
    """Hints of a request. Headers take precedence over metadata.

    Args:
        headers: by name in lower case.
        metadata: the body's; its keys workflow, agent, call_site and workload count.
        cache_key: the body's `prompt_cache_key`.
        priority: the body's `nvext.agent_hints.priority`.

    Raises:
        InvalidArgument: a value is too long or no text; names its header or field.
        PermissionDenied: the tenant is not the caller's.
    """
    said = {name: value for name in _METADATA if isinstance(value := (metadata or {}).get(name), str)}
    for name, value in said.items():
        checks.name(f"metadata.{name}", value)
    trace = _TRACEPARENT.fullmatch(headers.get(TRACE, "").strip().lower())
    return Hints(
        workflow=_text(headers, WORKFLOW) or said.get("workflow", ""),
        session=_text(headers, SESSION),
        parent_session=_text(headers, PARENT_SESSION),
        final=_flag(headers, SESSION_FINAL),
        cache_key=checks.name("prompt_cache_key", cache_key),
        trace=trace[1] if trace and trace[1] != _NO_TRACE else "",
        agent=_text(headers, AGENT) or said.get("agent", ""),
        call_site=_text(headers, CALL_SITE) or said.get("call_site", ""),
        workload=_text(headers, WORKLOAD) or said.get("workload", ""),
        tenant=current_caller().tenant_of(_text(headers, TENANT)),
        priority=priority or 0,
        timeout_s=_seconds(headers, TIMEOUT),
    )


def answer_headers(workflow: str, agent: str, step: int) -> dict[str, str]:
    """What a client is told of its step. Characters that a header cannot hold are percent-encoded."""
    return {WORKFLOW: quote(workflow, safe=_PRINTABLE), AGENT: quote(agent, safe=_PRINTABLE), STEP: str(step)}


def _text(headers: Mapping[str, str], name: str) -> str:
    try:
        return checks.name(name, headers.get(name, "").encode("latin-1").decode().strip())
    except UnicodeDecodeError:
        raise InvalidArgument(name, "must be UTF-8") from None


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    value = headers.get(name, "").strip()
    if not value:
        return None
    try:
        seconds = 0.0 if "_" in value else float(value)  # Python's numbers may have underscores, others may not
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidArgument(name, f"must be seconds, above 0 and at most {MAX_TIMEOUT_S:.0f}, got {value[:64]!r}")
    return seconds


def _flag(headers: Mapping[str, str], name: str) -> bool:
    value = headers.get(name, "").strip().lower()
    if value not in ("", "true", "false", "1", "0"):
        raise InvalidArgument(name, f"must be true or false, got {value[:64]!r}")
    return value in ("true", "1")
