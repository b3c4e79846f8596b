"""The fields of a step trace: names, types, meanings, and how each is checked. `docs/traces.md` shows these tables."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core.text.words import WORD_BITS
from pbkv_cluster.simulator.traces.fields import MAX_LIST, MAX_TEXT_BYTES, MAX_TOKENS, FieldError, Fields


class SegmentKind(StrEnum):
    """Role of a segment in its prompt."""

    SYSTEM = "system"
    SHARED = "shared"
    HISTORY = "history"
    TOOL = "tool"
    TASK = "task"


KINDS = {kind.value: kind for kind in SegmentKind}


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field."""

    name: str
    type: str
    required: bool
    meaning: str
    check: Callable[[Fields], object]  # raises `FieldError` if the field is not as it must be

    @property
    def row(self) -> str:
        """The field as a row of a table in Markdown."""
        return f"| `{self.name}` | {self.type} | {'yes' if self.required else 'no'} | {self.meaning} |"


def _text(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "text", True, meaning, lambda fields: fields.text(name))


def _optional_text(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "text", False, meaning, lambda fields: fields.optional_text(name))


def _count(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "count", True, meaning, lambda fields: fields.count(name, MAX_TOKENS))


def _optional_count(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "count", False, meaning, lambda fields: fields.optional_count(name, MAX_TOKENS))


def _words(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "words", False, meaning, lambda fields: fields.optional_numbers(name, 1 << WORD_BITS))


def _ids(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "token ids", False, meaning, lambda fields: fields.optional_token_ids(name))


def _anything(name: str, meaning: str) -> FieldSpec:
    return FieldSpec(name, "any", False, meaning, lambda fields: None)


def segment_kind(fields: Fields) -> SegmentKind:
    """The kind of a segment.

    Raises:
        FieldError: there is none of this name.
    """
    kind = KINDS.get(fields.text("kind"))
    if kind is None:
        raise FieldError(fields.path("kind"), f"{fields.text('kind')!r} is unknown; must be one of {', '.join(KINDS)}")
    return kind


TYPES = {
    "text": f'a string of 1 to {MAX_TEXT_BYTES} bytes of UTF-8; where it is not required, null and "" mean that it is absent',
    "count": f"a whole number from 0 to {MAX_TOKENS:,}",
    "seconds": "a number from 0 to 1e9, or null",
    "time": "a number from 0 to 1e11, or null",
    "words": f"a list of at most {MAX_LIST:,} whole numbers of {WORD_BITS} bits",
    "token ids": f"a list of at most {MAX_TOKENS:,} whole numbers of 31 bits",
    "segments": f"a list of at most {MAX_LIST:,} segments",
    "kind": "one of " + ", ".join(KINDS),
    "flag": "true, false or null",
    "any": "not checked",
}

LINE_FIELDS: tuple[FieldSpec, ...] = (
    _text("workflow_id", "the run; its lines stand together"),
    _text("workload", "the application that the run is one of"),
    _optional_text(
        "task_group", "the task, which several runs can share; on a workflow's first line. By default the run's own"
    ),
    _count("step", "position in the workflow: 0, 1, …"),
    _text("agent", "who calls the model"),
    _optional_text("phase", "the agent's prompt template"),
    FieldSpec(
        "prompt_segments",
        "segments",
        True,
        "the prompt, in order; at least one token",
        lambda fields: fields.objects("prompt_segments"),
    ),
    _count("prompt_tokens", "the sum over its segments"),
    _text("output_id", "id of a segment that contains the reply, in later prompts"),
    _count("output_tokens", "of the reply"),
    _optional_text("action", "the tool that the workflow waits for after this step"),
    FieldSpec(
        "tool_s",
        "seconds",
        False,
        "from this step's end to the next one's start",
        lambda fields: fields.optional_seconds("tool_s"),
    ),
    FieldSpec(
        "arrival_s",
        "time",
        False,
        "when the workflow began, on its first line; seconds from any moment that is the same in the whole file, such as 1970",
        lambda fields: fields.optional_time("arrival_s"),
    ),
    _words("task_words", "hashed words of the task, on a workflow's first line"),
    _words("words", "hashed words of the first 300 characters of the reply"),
    _optional_count("available_tokens", "of the prompt, that an infinite cache would have had when this was recorded"),
    _optional_count("delivered_tokens", "of the prompt, that the recorded cluster read from its cache"),
    _ids("prompt_token_ids", "the prompt itself; only `--with-tokens` records it"),
    _ids("output_token_ids", "the reply itself; likewise"),
    _anything("start_s", "when the step began"),
    _anything("end_s", "when the step ended"),
    _anything("logged_prompt_tokens", "what a provider billed"),
    _anything("logged_output_tokens", "likewise"),
)

SEGMENT_FIELDS: tuple[FieldSpec, ...] = (
    FieldSpec("kind", "kind", True, "its role in the prompt", segment_kind),
    _text("id", "equal ids mean equal text; a shorter segment with the same id is the beginning of a longer one"),
    _count("tokens", "its length"),
    FieldSpec(
        "pseudo",
        "flag",
        False,
        "nobody knows the text, so that what it shares with others is unknown",
        lambda fields: fields.optional_flag("pseudo"),
    ),
)

LINE_NAMES = frozenset(spec.name for spec in LINE_FIELDS)
SEGMENT_NAMES = frozenset(spec.name for spec in SEGMENT_FIELDS)
