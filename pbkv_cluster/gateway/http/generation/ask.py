"""What a request asks for, whatever its dialect."""

from dataclasses import dataclass, field
from typing import Any

from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.gateway.http.sessions.hints import Hints
from pbkv_cluster.gateway.http.tools.forced import ForcedCall


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: exactly one of `messages`, `text` and `token_ids` is the prompt."""

    sampling: SamplingOptions
    size_bytes: int  # of the request's body
    hints: Hints
    messages: tuple[ChatMessage, ...] = ()
    text: str | None = None
    token_ids: bytes | None = None  # packed
    tools: tuple[dict[str, Any], ...] = field(default=())  # `{"type": "function", "function": …}`
    choices: int = 1  # answers to the same prompt
    forced: ForcedCall | None = None  # a call that each answer must have; None: the model decides
    parallel_calls: bool = True  # an answer may hold several tool calls; false: the first is taken
