"""What can be converted, and what each source leaves open."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pbkv_cluster.simulator.conversion.access_log import access_log
from pbkv_cluster.simulator.conversion.langfuse import langfuse
from pbkv_cluster.simulator.conversion.lengths import azure, burstgpt
from pbkv_cluster.simulator.conversion.phoenix import phoenix
from pbkv_cluster.simulator.conversion.sharegpt import sharegpt
from pbkv_cluster.simulator.recording.calls import Call
from pbkv_cluster.simulator.traces.problems import RecordProblems

_LENGTHS = "lengths only: what prompts share is unknown, so every prompt is marked as pseudo, and shares nothing"
_ESTIMATE = "lengths are estimated from bytes, by the ratio that logged counts show, or else 4 bytes for a token"
_ALONE = "each request is a workflow of its own: it names no agents and no conversations"

Read = Callable[[Path, RecordProblems | None], Iterator[Call]]


@dataclass(frozen=True, slots=True)
class Converter:
    """One source."""

    read: Read
    notes: tuple[str, ...]  # what is missing, and what is assumed


CONVERTERS: dict[str, Converter] = {
    "azure": Converter(azure, (_LENGTHS, _ALONE)),
    "burstgpt": Converter(
        burstgpt, (_LENGTHS, "workflows are sessions, where the file has them; the model stands for the agent")
    ),
    "sharegpt": Converter(
        sharegpt, (_ESTIMATE, "no times and no pauses are known", "one agent: each reply is a step that sees all before it")
    ),
    "access-log": Converter(
        access_log, (_ESTIMATE, "where the client names neither workflow nor agent, they are recognised by their prompts")
    ),
    "langfuse": Converter(langfuse, (_ESTIMATE, "workflows are sessions, or else traces")),
    "phoenix": Converter(phoenix, (_ESTIMATE, "workflows are sessions, or else traces")),
}
MOONCAKE = "mooncake"
MOONCAKE_NOTES = ("prompts are shared in blocks of 512 tokens", _ALONE, "replies that come back are not recognised")
OTLP_NOTES = (_ESTIMATE, "spans without messages have lengths only, and are marked as pseudo")
