"""Calls as text become steps without text: equal texts get equal ids, and lengths are estimated from bytes.

A message is cut into pieces of 256 characters, so that two prompts share one up to the piece in which they differ. A reply is
one segment, as it comes back whole. Lengths must not depend on the prompt that a text stands in, so they come from its bytes
alone, by one factor for a whole file.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from pbkv_cluster.simulator.recording.calls import ASSISTANT, SYSTEM, TOOL, Call, Message, bytes_per_token
from pbkv_cluster.simulator.recording.ids import Ids, keyed_agent
from pbkv_cluster.simulator.recording.recorder import RecordedStep
from pbkv_cluster.simulator.traces.fields import MAX_LIST, MAX_TOKENS
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceError

PIECE_CHARACTERS = 256
MARKUP_TOKENS = 4  # around a message, as in the recorded traces of frameworks
CALIBRATION_CALLS = 64

_KINDS = {SYSTEM: SegmentKind.SYSTEM, TOOL: SegmentKind.TOOL}


class TextSteps:
    """Makes steps of calls."""

    def __init__(self, ids: Ids, token_bytes: float = 4.0) -> None:
        """Args:
        ids: for texts.
        token_bytes: mean bytes of a token.
        """
        self._ids = ids
        self._token_bytes = token_bytes
        self._steps = 0

    def step(self, call: Call) -> RecordedStep:
        """The step of a call. What is known of its length alone becomes one segment that is marked as pseudo."""
        self._steps += 1
        prompt = tuple(segment for message in call.messages for segment in self._segments(message))
        if not prompt:
            tokens = min(MAX_TOKENS, max(1, call.prompt_tokens or 0))
            prompt = (Segment(SegmentKind.HISTORY, self._ids("unknown", str(self._steps)), tokens, pseudo=True),)
        output_tokens = call.output_tokens
        if output_tokens is None:
            output_tokens = self._tokens(call.reply or "")
        return RecordedStep(
            agent=keyed_agent(call.agent, self._ids) if call.recognised else call.agent,
            prompt=prompt,
            output_id=self._reply_id(call.reply) if call.reply else self._ids("reply", str(self._steps)),
            output_tokens=min(MAX_TOKENS, output_tokens),
            started_s=call.started_s,
            ended_s=call.started_s if call.ended_s is None else call.ended_s,
            call_site=call.call_site,
        )

    def _segments(self, message: Message) -> Iterator[Segment]:
        if message.role == ASSISTANT:
            yield Segment(SegmentKind.HISTORY, self._reply_id(message.text), self._tokens(message.text) + MARKUP_TOKENS)
            return
        kind = _KINDS.get(message.role, SegmentKind.HISTORY)
        for start in range(0, max(1, len(message.text)), PIECE_CHARACTERS):
            piece = message.text[start : start + PIECE_CHARACTERS]
            markup = 0 if start else MARKUP_TOKENS
            yield Segment(kind, self._ids("text", "" if start else message.role, piece), self._tokens(piece) + markup)

    def _reply_id(self, text: str) -> str:
        return self._ids("text", ASSISTANT, text)

    def _tokens(self, text: str) -> int:
        size = len(text.encode(errors="surrogatepass"))
        return max(1, round(size / self._token_bytes)) if size else 0


def steps_of(
    calls: Iterable[Call], ids: Ids, sample: int = CALIBRATION_CALLS, problems: RecordProblems | None = None
) -> Iterator[tuple[Call, RecordedStep]]:
    """The step of each call. The first `sample` calls tell the length of tokens; no more calls than these are held.

    Raises:
        TraceError: a prompt is longer than a trace can hold, and `problems` is None.
    """
    rest = iter(calls)
    first = list(islice(rest, sample))
    texts = TextSteps(ids, bytes_per_token(first))
    for call in chain(first, rest):
        with noted(problems):
            yield call, _checked(call, texts.step(call))


def _checked(call: Call, step: RecordedStep) -> RecordedStep:
    tokens = sum(segment.tokens for segment in step.prompt)
    if len(step.prompt) > MAX_LIST or tokens > MAX_TOKENS:
        raise TraceError(
            f"{call.place or f'workflow {call.workflow}'}: a prompt of {len(step.prompt):,} segments and {tokens:,} tokens "
            f"is more than a trace can hold, {MAX_LIST:,} and {MAX_TOKENS:,}"
        )
    return step
