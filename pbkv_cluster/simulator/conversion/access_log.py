"""Access logs of OpenAI's and Anthropic's APIs: bodies of requests and responses, one call in each line.

Workflow and agent are those that the client names, by the headers and metadata that our gateway takes; else they are recognised
as there: a prompt that continues a conversation is a step of its workflow, and an agent goes by its system prompt.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.gateway.http.sessions import chains
from pbkv_cluster.gateway.http.sessions.hints import Hints, read_hints
from pbkv_cluster.gateway.http.sessions.prefix_table import PrefixTable
from pbkv_cluster.simulator.conversion.records import count_of, line_records, seconds_of
from pbkv_cluster.simulator.recording.calls import SYSTEM, Call, Message, message_text, messages_of, text_of, tool_names
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError

_TABLE_BYTES = 64 << 20


def access_log(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """Lines with `time`, `request`, `response`, and if they are logged `duration_s` and `headers`.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    log = _AccessLog()
    for place, record in line_records(path, problems):
        with noted(problems):
            yield log.call(place, record)


class _AccessLog:
    def __init__(self) -> None:
        self._prefixes = PrefixTable(_TABLE_BYTES)
        self._numbers = count()

    def call(self, place: str, record: dict[str, Any]) -> Call:
        """Raises:
        TraceError: the record is wrong.
        """
        try:
            return self._call(place, record)
        except InvalidArgument as error:
            raise TraceError(f"{place}: {error}") from error

    def _call(self, place: str, record: dict[str, Any]) -> Call:
        request = _object(record, place, "request")
        response = _object(record, place, "response") if record.get("response") is not None else {}
        headers = {str(name).lower(): _on_the_wire(str(value)) for name, value in _object(record, place, "headers", {}).items()}
        hints = read_hints(headers, _object(request, place, "metadata", {}), _text(request.get("prompt_cache_key")))
        messages = _messages(request)
        reply, tool = _reply(response)
        usage = _object(response, place, "usage", {})
        started_s = seconds_of(record.get("time"), place, "time")
        duration = record.get("duration_s")
        workflow, agent = self._attribute(hints, messages, reply)
        return Call(
            workflow=workflow,
            workload=hints.workload or _text(request.get("model")) or "log",
            agent=agent,
            messages=messages,
            reply=reply,
            prompt_tokens=_tokens(usage, place, "prompt_tokens", "input_tokens"),
            output_tokens=_tokens(usage, place, "completion_tokens", "output_tokens"),
            started_s=started_s,
            ended_s=started_s if duration is None else started_s + seconds_of(duration, place, "duration_s"),
            call_site=hints.call_site,
            tool=tool,
            place=place,
            recognised=not hints.agent and chains.is_of_prompt(agent),
        )

    def _attribute(self, hints: Hints, messages: Sequence[Message], reply: str | None) -> tuple[str, str]:
        chat = [ChatMessage(each.role, each.text) for each in messages]
        agent = hints.agent or chains.agent_name(chat, ())
        named = hints.workflow or hints.parent_session or hints.session or hints.cache_key or hints.trace
        if named:
            return named, agent
        beginnings = chains.of_messages(chat)
        found = next(iter(self._prefixes.find(hints.tenant, beginnings, agent)), "")
        workflow = found or f"conversation-{next(self._numbers)}"
        if beginnings:
            self._prefixes.add(hints.tenant, beginnings[-1], workflow, agent)
            if reply:
                self._prefixes.add(hints.tenant, chains.extended(beginnings, reply, ()), workflow)
        return workflow, agent


def _messages(request: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of a chat, a completion, a response, or a message of Anthropic's; tools first, as templates print them."""
    tools = request.get("tools")
    head = [Message(SYSTEM, json.dumps(tools, sort_keys=True))] if tools else []
    head += [Message(SYSTEM, text_of(request[name])) for name in ("system", "instructions") if request.get(name)]
    for name in ("messages", "input", "prompt"):
        if request.get(name) is not None:
            return (*head, *messages_of(request[name], f"request.{name}"))
    raise InvalidArgument("request", "must have messages, input or prompt")


def _reply(response: Mapping[str, Any]) -> tuple[str | None, str]:
    """The text of an answer, and the first tool that it calls."""
    message: Any = None
    choices = response.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message", choices[0].get("text"))
    elif response.get("output") is not None:
        message = {"content": response["output"]}
    elif response.get("content") is not None:
        message = {"content": response["content"]}
    if message is None:
        return None, ""
    return message_text(message), next(tool_names(message), "")


def _object(record: Mapping[str, Any], place: str, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, dict):
        raise TraceError(f"{place}: {name}: must be an object, got {type(value).__name__}")
    return value


def _tokens(usage: Mapping[str, Any], place: str, *names: str) -> int | None:
    for name in names:
        if usage.get(name) is not None:
            return count_of(usage[name], place, f"response.usage.{name}")
    return None


def _on_the_wire(value: str) -> str:
    """A header as a server gets it: its bytes, each as one character."""
    return value.encode(errors="surrogatepass").decode("latin-1")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
