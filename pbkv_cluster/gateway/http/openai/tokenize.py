"""/tokenize: the tokens of a prompt or of a conversation, as vLLM answers it."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.gateway.http.generation.counting import Counter
from pbkv_cluster.gateway.http.openai.chat_request import Message, Tool
from pbkv_cluster.gateway.http.openai.fields import Neutral
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.wire.body import Body, BodyReader, Items, parse
from pbkv_cluster.gateway.http.wire.problems import InvalidField
from pbkv_cluster.gateway.http.wire.replies import json_reply
from pbkv_cluster.gateway.step.request import Prompt, TextPrompt


class TokenizeRequest(Body):
    """Body of /tokenize: a prompt or messages."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
            ]
        }
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Items[Message], Field(min_length=1)] | None = None
    tools: Items[Tool] | None = None
    add_special_tokens: Annotated[Any, Neutral(True)] = None
    add_generation_prompt: Annotated[Any, Neutral(True)] = None


class Tokenize:
    """Serves tokens."""

    def __init__(self, counter: Counter, tools: ToolWriter, bodies: BodyReader, model: ServedModel) -> None:
        self._counter = counter
        self._tools = tools
        self._bodies = bodies
        self._model = model

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or no worker is reachable.
        """
        body = await self._bodies.read(request)
        asked = await parse(TokenizeRequest, body)
        if asked.model is not None:
            self._model.check(asked.model)
        prompt = prompt_of(asked.prompt, asked.messages, asked.tools, self._tools)
        found = await self._counter.tokenize(request, prompt, len(body))
        return json_reply({"count": len(found.token_ids), "max_model_len": found.max_context_tokens, "tokens": found.token_ids})


def prompt_of(text: str | None, messages: Sequence[Message] | None, tools: Sequence[Tool] | None, writer: ToolWriter) -> Prompt:
    """Raises:
    InvalidField: there are both a text and messages, or neither.
    """
    if (text is None) is (messages is None):
        raise InvalidField("prompt", "prompt: give either prompt or messages")
    if text is not None:
        return TextPrompt(text)
    plain = [message.plain(position) for position, message in enumerate(messages or ())]
    return writer.prompt(plain, [tool.plain() for tool in tools or ()])
