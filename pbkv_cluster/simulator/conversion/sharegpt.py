"""ShareGPT: conversations as text. Each reply is a step, whose prompt is all that was said before it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.conversion.records import json_records
from pbkv_cluster.simulator.recording.calls import ASSISTANT, Call, Message, messages_of
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError


def sharegpt(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """Objects with `conversations` (from, value) or `messages` (role, content), and an `id`, if there is one.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    for number, (place, record) in enumerate(json_records(path, problems)):
        with noted(problems):
            messages = _messages(place, record)
            for at, message in enumerate(messages):
                if message.role == ASSISTANT and at:
                    workflow = str(record.get("id") or number)
                    yield Call(workflow, "sharegpt", ASSISTANT, messages[:at], message.text, place=place)


def _messages(place: str, record: dict[str, Any]) -> tuple[Message, ...]:
    name = "conversations" if "conversations" in record else "messages"
    if not isinstance(record.get(name), list):
        raise TraceError(f"{place}: conversations: must be a list of messages")
    try:
        return messages_of(record[name], name)
    except InvalidArgument as error:
        raise TraceError(f"{place}: {error}") from error
