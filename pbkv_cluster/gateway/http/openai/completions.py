"""/v1/completions: prompts that are text or token ids."""

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core import tokens
from pbkv_cluster.gateway.http.generation.answering import Answering
from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.parts import Ended, Part, TextPart
from pbkv_cluster.gateway.http.generation.whole import Choice
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.chat import DONE, error_event, finish_reason
from pbkv_cluster.gateway.http.openai.fields import Ignored, Neutral
from pbkv_cluster.gateway.http.openai.logprobs import completion_logprobs
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.openai.usage import usage_json
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.wire.body import Body, BodyReader, Items, parse
from pbkv_cluster.gateway.http.wire.problems import InvalidField
from pbkv_cluster.gateway.http.wire.replies import sse

_DEFAULT_TOKENS = 16  # as in OpenAI's API

TokenIds = Annotated[Items[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(Body):
    """Body of /v1/completions."""

    model: str
    prompt: str | TokenIds | Items[str] | Items[TokenIds]
    max_tokens: fields.MaxTokens | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    seed: fields.Seed | None = None
    stop: fields.Stop | None = None
    n: fields.Choices | None = None
    stream: bool | None = None
    stream_options: fields.StreamOptions | None = None
    ignore_eos: bool | None = None
    metadata: fields.Metadata | None = None
    prompt_cache_key: str | None = None
    nvext: fields.Nvext | None = None
    logprobs: fields.TopLogprobs | None = None
    best_of: Annotated[Any, Neutral(1)] = None
    echo: Annotated[Any, Neutral(False)] = None
    frequency_penalty: Annotated[Any, Neutral(0)] = None
    logit_bias: Annotated[Any, Neutral({})] = None
    presence_penalty: Annotated[Any, Neutral(0)] = None
    suffix: Annotated[Any, Neutral("")] = None
    user: Ignored = None


class Completions:
    """Serves completions."""

    def __init__(self, answering: Answering, bodies: BodyReader, model: ServedModel) -> None:
        self._answering = answering
        self._bodies = bodies
        self._model = model

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or a step could not be run.
        """
        body = await self._bodies.read(request)
        asked = await parse(CompletionRequest, body)
        self._model.check(asked.model)
        ask = _to_ask(asked, dict(request.headers), len(body))
        answer = _Answer(self._model.name, with_usage=fields.StreamOptions.with_usage(asked.stream_options))
        return await self._answering.answer(request, ask, answer, error_event, asked.stream)


def one_prompt(prompt: str | list[int] | list[str] | list[list[int]]) -> str | list[int]:
    """The prompt, which may be the only one of a list.

    Raises:
        InvalidField: there are several.
    """
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return prompt
    if len(prompt) != 1:
        raise InvalidField("prompt", f"prompt: one request takes one prompt, got {len(prompt)}", "unsupported_value")
    return prompt[0]  # type: ignore[return-value]


def _to_ask(asked: CompletionRequest, headers: dict[str, str], size_bytes: int) -> Ask:
    prompt = one_prompt(asked.prompt)
    return Ask(
        sampling=fields.sampling(
            asked.max_tokens or _DEFAULT_TOKENS,
            asked.temperature,
            asked.top_p,
            asked.seed,
            asked.stop,
            asked.ignore_eos,
            asked.logprobs,
        ),
        size_bytes=size_bytes,
        hints=read_hints(headers, asked.metadata, asked.prompt_cache_key or "", fields.Nvext.priority(asked.nvext)),
        text=prompt if isinstance(prompt, str) else None,
        token_ids=None if isinstance(prompt, str) else tokens.pack(prompt),
        choices=asked.n or 1,
    )


class _Answer:
    """One answer, as it is written."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        """`with_usage`: see `StreamOptions`."""
        self._with_usage = with_usage
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [
                _choice(index, choice.text, finish_reason(choice.end), completion_logprobs(choice.tokens, 0))
                for index, choice in enumerate(choices)
            ],
            "usage": usage_json(choice.end.usage for choice in choices),
        }

    async def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
        ended: dict[int, Ended] = {}
        blank = {"usage": None} if self._with_usage else {}
        offsets: Counter[int] = Counter()  # characters of each choice's tokens so far
        async for part in parts:
            match part:
                case TextPart():
                    logprobs = completion_logprobs(part.tokens, offsets[part.choice])
                    offsets[part.choice] += sum(len(token.text) for token in part.tokens or ())
                    yield sse({**self._head, "choices": [_choice(part.choice, part.text, None, logprobs)], **blank})
                case Ended():
                    ended[part.choice] = part
                    yield sse({**self._head, "choices": [_choice(part.choice, "", finish_reason(part))], **blank})
        if self._with_usage:
            usage = usage_json(ended[choice].usage for choice in sorted(ended))
            yield sse({**self._head, "choices": [], "usage": usage})
        yield DONE


def _choice(index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
