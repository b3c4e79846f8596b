"""Runs the steps of one request, and finds tool calls in their text."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, Tokens
from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.parts import CallPart, Ended, Part, ShownToken, Started, TextPart
from pbkv_cluster.gateway.http.sessions.sessions import Attribution, Sessions
from pbkv_cluster.gateway.http.tools.base import CallParser
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.tools.plain import PlainParser
from pbkv_cluster.gateway.step.request import Prompt, StepRequest, TextPrompt, TokenPrompt
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.gateway.step.submission import Submission


@dataclass(frozen=True, slots=True)
class Generations:
    """Makes the generations of one gateway."""

    submission: Submission
    sessions: Sessions
    codec: TextCodec
    tools: ToolWriter

    def begin(self, ask: Ask) -> "Generation":
        """Lets a request in; `close` the generation when its client has gone or is served.

        Raises:
            ResourceExhausted: too many steps are in flight, or they are too large.
        """
        steps: list[Step] = []
        try:
            for _ in range(ask.choices):
                steps.append(self.submission.admit(ask.size_bytes))  # noqa: PERF401  # those admitted so far are closed
        except Exception:
            for step in steps:
                self.submission.close(step)
            raise
        return Generation(self, ask, steps)


class Generation:
    """The steps of one request."""

    def __init__(self, parts: Generations, ask: Ask, steps: list[Step]) -> None:
        self._with = parts
        self._ask = ask
        self._steps = steps

    def close(self) -> None:
        """Cancels the steps unless they have ended, and frees what they hold at once. Harmless when repeated."""
        for step in self._steps:
            self._with.submission.close(step)

    async def parts(self) -> AsyncIterator[Part]:
        """The parts of all choices as they come.

        Raises:
            PbkvError: the request is wrong, or a step could not be run.
        """
        ask, sessions = self._ask, self._with.sessions
        prompt = self._prompt()
        attribution = await sessions.attribute(ask.hints, ask.messages, ask.text or "", ask.tools)
        try:
            if len(self._steps) == 1:
                async for part in self._choice(0, prompt, attribution):
                    yield part
            else:
                async for part in self._choices(prompt, attribution):
                    yield part
        finally:
            self.close()
            await sessions.over(ask.hints, attribution)

    def _prompt(self) -> Prompt:
        ask = self._ask
        if ask.text is not None:
            return TextPrompt(ask.text)
        if ask.token_ids is not None:
            return TokenPrompt(ask.token_ids)
        return self._with.tools.prompt(ask.messages, ask.tools, self._call_start())

    def _parser(self) -> CallParser:
        if not self._ask.tools:
            return PlainParser()
        parser = self._with.tools.form.parser(self._tool_names())
        parser.push(self._call_start())  # which is held back, as any beginning of a call
        return parser

    def _tool_names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self._ask.tools]

    def _call_start(self) -> str:
        """What the answer begins with before the model says a word."""
        forced = self._ask.forced
        return "" if forced is None else self._with.tools.form.call_start(forced.name)

    async def _choice(self, choice: int, prompt: Prompt, attribution: Attribution) -> AsyncIterator[Part]:
        ask, parser = self._ask, self._parser()
        sampling = ask.sampling if not choice else ask.sampling.reseeded(choice)
        request = StepRequest(
            workflow_id=attribution.workflow,
            agent=attribution.agent,
            prompt=prompt,
            call_site=ask.hints.call_site,
            sampling=sampling,
            priority=ask.hints.priority,
            timeout_s=ask.hints.timeout_s,
        )
        written, text = bytearray(), ""
        shown, calls = "", list[FunctionCall]()
        pieces: list[str | FunctionCall] = []
        shown_tokens: list[ShownToken] | None = None if sampling.top_logprobs is None else []
        async for event in self._with.submission.run(self._steps[choice], request):
            match event:
                case Accepted():
                    yield Started(choice, attribution.workflow, attribution.agent, event.step, event.prompt_tokens)
                    continue
                case Tokens():
                    written += event.packed
                    text += event.text
                    if shown_tokens is not None:
                        shown_tokens += self._shown(event)
                    pieces = parser.push(event.text)
                case Finished():
                    if event.reason is FinishReason.CANCELLED:
                        raise NotFound(f"workflow {attribution.workflow!r} has ended")
                    pieces = parser.finish()
            for piece in pieces:
                if isinstance(piece, str):
                    shown += piece
                    yield TextPart(choice, piece, shown_tokens)
                    shown_tokens = None if shown_tokens is None else []
                elif ask.parallel_calls or not calls:
                    calls.append(piece)
                    yield CallPart(choice, len(calls) - 1, piece)
            if isinstance(event, Finished):
                if shown_tokens:  # of what is no text, such as tool calls
                    yield TextPart(choice, "", shown_tokens)
                cut = event.reason is FinishReason.LENGTH
                if ask.forced is not None and (calls or not cut):
                    ask.forced.check_called(calls[0] if calls else None, self._tool_names())
                await self._with.sessions.answered(attribution, shown, calls)
                stop = "" if cut else self._stop_string(bytes(written), text)
                yield Ended(choice, cut, stop, len(calls), event.usage)

    def _shown(self, event: Tokens) -> Iterator[ShownToken]:
        """The tokens of an event, without those that are no text, such as the end of the output."""
        codec = self._with.codec
        for token, each in zip(event.token_ids, event.logprobs, strict=False):
            if token not in codec.special_tokens:
                top = [(codec.token_text(other), logprob) for other, logprob in each.top]
                yield ShownToken(codec.token_text(token), each.logprob, top)

    def _stop_string(self, written: bytes, text: str) -> str:
        """The stop string that ended a text: its tokens were generated, but its text was not sent."""
        if not self._ask.sampling.stop:
            return ""
        rest = self._with.codec.decode(tokens.unpack(written))[len(text) :]
        return next((stop for stop in self._ask.sampling.stop if rest.startswith(stop)), "")

    async def _choices(self, prompt: Prompt, attribution: Attribution) -> AsyncIterator[Part]:
        """All choices at once; a client that reads slowly slows all of them down."""
        queue: asyncio.Queue[Part | Exception | None] = asyncio.Queue(maxsize=len(self._steps))

        async def feed(choice: int) -> None:
            try:
                async for part in self._choice(choice, prompt, attribution):
                    await queue.put(part)
                await queue.put(None)
            except Exception as error:  # noqa: BLE001  # raised again where the queue is read
                await queue.put(error)

        tasks = [asyncio.create_task(feed(choice), name="choice of a request") for choice in range(len(self._steps))]
        try:
            running = len(tasks)
            while running:
                part = await queue.get()
                if isinstance(part, Exception):
                    raise part
                if part is None:
                    running -= 1
                else:
                    yield part
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
