"""Beginnings of a conversation as hashes, and names for agents that have none.

Agents of one workflow see the same conversation from different sides: what one has said as an assistant is a user's message
to another, and each has a system prompt of its own. So the hashes leave out roles and system prompts.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall

ASSISTANT = "assistant"  # the agent of a conversation without a system prompt and tools
MIN_CHARACTERS = 16  # of a beginning that identifies a conversation; many begin with "Hello"

_SYSTEM = "system"
_PIECE_CHARACTERS = 64  # of a prompt that is one text
_PIECES = 4096  # of such a prompt that are looked at
_WORDS = 4  # of a system prompt, in the name of its agent
_WORD_CHARACTERS = 16
_HASH_DIGITS = 6
_OF_PROMPT = re.compile(rf"(?:[^\W_]{{1,{_WORD_CHARACTERS}}}-){{0,{_WORDS}}}[0-9a-f]{{{_HASH_DIGITS}}}")
_NUMBERS = re.compile(r"\d+")  # dates, times and counts in a system prompt do not make another agent


class Beginning(NamedTuple):
    """The conversation up to the end of one of its messages."""

    key: int
    characters: int


def of_messages(messages: Iterable[ChatMessage]) -> list[Beginning]:
    """The beginnings of a conversation, from the shortest to the whole; without system prompts."""
    return _chain(_content(message.text, message.tool_calls) for message in messages if message.role != _SYSTEM)


def of_text(text: str) -> list[Beginning]:
    """The beginnings of a prompt that is one text, up to the last that has a whole number of pieces; at most 4,096."""
    whole = min(len(text) // _PIECE_CHARACTERS, _PIECES) * _PIECE_CHARACTERS
    return _chain(text[start : start + _PIECE_CHARACTERS] for start in range(0, whole, _PIECE_CHARACTERS))


def extended(beginnings: Sequence[Beginning], text: str, calls: Sequence[FunctionCall]) -> Beginning:
    """The whole conversation once its answer has been added."""
    whole = beginnings[-1] if beginnings else Beginning(0, 0)
    return _next(whole, _content(text, calls))


def agent_name(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> str:
    """A name for the agent of a conversation: by its system prompt, or else by its tools.

    Starts with the system prompt's first words, for people who read it.
    """
    system = "\n".join(message.text for message in messages if message.role == _SYSTEM).strip()
    if not system:
        names = sorted(tool["function"]["name"] for tool in tools)
        return f"{ASSISTANT}-{xxh3_64_hexdigest(json.dumps(names).encode())[:_HASH_DIGITS]}" if names else ASSISTANT
    words = re.findall(r"[^\W_]+", system.casefold())[:_WORDS]
    digest = xxh3_64_hexdigest(_NUMBERS.sub("#", system).encode(errors="surrogatepass"))
    return "-".join([*(word[:_WORD_CHARACTERS] for word in words), digest[:_HASH_DIGITS]])


def is_of_prompt(agent: str) -> bool:
    """Whether a name has the form of those that `agent_name` makes of prompts and tools, as a client's own name may, too."""
    return _OF_PROMPT.fullmatch(agent) is not None


def _content(text: str, calls: Sequence[FunctionCall]) -> str:
    return "\0".join([text.strip(), *(f"{call.name}\1{_canonical(call.arguments)}" for call in calls)])


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _chain(contents: Iterable[str]) -> list[Beginning]:
    found: list[Beginning] = []
    last = Beginning(0, 0)
    for content in contents:
        last = _next(last, content)
        found.append(last)
    return found


def _next(last: Beginning, content: str) -> Beginning:
    return Beginning(xxh3_64_intdigest(content.encode(errors="surrogatepass"), seed=last.key), last.characters + len(content))
