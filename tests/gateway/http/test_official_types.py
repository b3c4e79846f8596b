"""What the types of the official clients allow is known, and answers are what they promise: the clients check neither."""

from typing import Any, get_args

import anthropic
import anthropic.types as claude
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai import AsyncStream, types
from openai.types import chat, completion_create_params, responses, shared_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params, response_input_item_param
from pydantic import BaseModel, TypeAdapter

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gateway.http.anthropic import messages_request as messages
from pbkv_cluster.gateway.http.openai import chat_request, completions, fields, responses_request
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.http.test_workflow_recognition import call_then_answer
from tests.gateway.peers import ScriptedWorker

HEADERS = {"user_profile_id", "workspace_id"}  # parameters of Anthropic's client that it sends as headers
SAID: Any = [{"role": "user", "content": "What do whales do all day?"}]
SCHEMA: Any = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "search", "parameters": SCHEMA}}]


def both(params: Any, base: str) -> set[str]:
    """Parameters of a method, whether it streams or not."""
    return {*getattr(params, f"{base}NonStreaming").__annotations__, *getattr(params, f"{base}Streaming").__annotations__}


SENT = [
    (chat_request.ChatRequest, both(chat_create_params, "CompletionCreateParams")),
    (completions.CompletionRequest, both(completion_create_params, "CompletionCreateParams")),
    (responses_request.ResponsesRequest, both(response_create_params, "ResponseCreateParams")),
    (messages.MessagesRequest, both(message_create_params, "MessageCreateParams")),
    (messages.CountRequest, message_count_tokens_params.MessageCountTokensParams),
    (fields.StreamOptions, chat.ChatCompletionStreamOptionsParam),
    (chat_request.TextPart, chat.ChatCompletionContentPartTextParam),
    (chat_request.Message, chat.ChatCompletionSystemMessageParam),
    (chat_request.Message, chat.ChatCompletionDeveloperMessageParam),
    (chat_request.Message, chat.ChatCompletionUserMessageParam),
    (chat_request.Message, chat.ChatCompletionAssistantMessageParam),
    (chat_request.Message, chat.ChatCompletionToolMessageParam),
    (chat_request.Message, chat.ChatCompletionMessage),
    (chat_request.ToolCall, chat.ChatCompletionMessageFunctionToolCallParam),
    (chat_request.Tool, chat.ChatCompletionFunctionToolParam),
    (chat_request.Function, shared_params.FunctionDefinition),
    (responses_request.Text, responses.ResponseInputTextParam),
    (responses_request.Text, responses.ResponseOutputText),
    (responses_request.MessageItem, responses.EasyInputMessageParam),
    (responses_request.MessageItem, responses.ResponseOutputMessage),
    (responses_request.CallItem, responses.ResponseFunctionToolCall),
    (responses_request.ResultItem, response_input_item_param.FunctionCallOutput),
    (responses_request.ReasoningItem, responses.ResponseReasoningItem),
    (responses_request.FunctionTool, responses.FunctionToolParam),
    (messages.Message, claude.MessageParam),
    (messages.TextBlock, claude.TextBlock),
    (messages.TextBlock, claude.TextBlockParam),
    (messages.ToolUseBlock, claude.ToolUseBlock),
    (messages.ToolUseBlock, claude.ToolUseBlockParam),
    (messages.ToolResultBlock, claude.ToolResultBlockParam),
    (messages.ThinkingBlock, claude.ThinkingBlock),
    (messages.RedactedThinkingBlock, claude.RedactedThinkingBlock),
    (messages.Tool, claude.ToolParam),
    (messages.ToolChoice, claude.ToolChoiceToolParam),
]


def written(model: type[BaseModel]) -> set[str]:
    """Names of a model's fields, as JSON has them."""
    return {field.alias or name for name, field in model.model_fields.items()}


def names_of(theirs: Any) -> set[str]:
    return written(theirs) if issubclass(theirs, BaseModel) else set(theirs.__annotations__)


@pytest.mark.parametrize(("ours", "theirs"), SENT, ids=lambda each: getattr(each, "__name__", "parameters"))
def test_every_field_that_a_client_may_send_is_known(ours: type[BaseModel], theirs: Any) -> None:
    """So that it is never refused as a misspelt one."""
    names = theirs if isinstance(theirs, set) else set[str]().union(*map(names_of, get_args(theirs) or [theirs]))
    assert names - HEADERS - written(ours) == set()


ANSWERED: list[tuple[str, dict[str, Any], Any, Any]] = [
    (
        "/chat/completions",
        {"messages": SAID, "tools": TOOLS, "logprobs": True, "top_logprobs": 1, "n": 2},
        chat.ChatCompletion,
        chat.ChatCompletionChunk,
    ),
    ("/chat/completions", {"messages": SAID, "max_tokens": 3}, chat.ChatCompletion, chat.ChatCompletionChunk),
    ("/completions", {"prompt": "Whales", "max_tokens": 3, "logprobs": 1}, types.Completion, types.Completion),
    (
        "/responses",
        {"input": SAID, "tools": [{"type": "function", **TOOLS[0]["function"]}]},
        responses.Response,
        responses.ResponseStreamEvent,
    ),
    ("/responses", {"input": SAID, "max_output_tokens": 3}, responses.Response, responses.ResponseStreamEvent),
    (
        "/messages",
        {"messages": SAID, "tools": [{"name": "search", "input_schema": SCHEMA}], "max_tokens": 300},
        claude.Message,
        claude.RawMessageStreamEvent,
    ),
    ("/messages", {"messages": SAID, "max_tokens": 3}, claude.Message, claude.RawMessageStreamEvent),
]


@pytest.mark.parametrize(("path", "fields", "whole", "event"), ANSWERED)
async def test_answers_are_what_the_types_promise(path: str, fields: dict[str, Any], whole: Any, event: Any) -> None:
    worker = ScriptedWorker("w0", say=call_then_answer, captured={Tier.GPU: 16})
    async with http_running(worker) as http, http.openai() as client:
        body = {"model": MODEL, **fields}
        TypeAdapter(whole).validate_python(await client.post(path, body=body, cast_to=object))
        streamed = {**body, "stream": True}
        if "completions" in path:
            streamed["stream_options"] = {"include_usage": True}
        stream = await client.post(path, body=streamed, cast_to=object, stream=True, stream_cls=AsyncStream[object])
        events: list[Any] = [each async for each in stream]
    assert len(events) >= 3
    for each in events:
        if event is types.Completion:  # which has no type for the parts of a stream, whose reason is null but for the last
            each["choices"] = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in each["choices"]]
        TypeAdapter(event).validate_python(each)


async def test_the_model_is_one_of_both_apis() -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client, http.anthropic() as other:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert [model.display_name async for model in other.models.list()] == [MODEL]
        entry = await client.get(f"/models/{MODEL}", cast_to=object)
        for model in (types.Model, claude.ModelInfo):
            TypeAdapter(model).validate_python(entry)


async def test_a_response_that_fails_ends_with_the_events_that_say_so() -> None:
    worker = ScriptedWorker("w0", stop_at=1, end_early=True)
    async with http_running(worker, retry_limit=0) as http, http.openai() as client:
        stream = await client.post(
            "/responses",
            body={"model": MODEL, "input": SAID, "stream": True, "max_output_tokens": 9},
            cast_to=object,
            stream=True,
            stream_cls=AsyncStream[object],
        )
        events: list[Any] = [TypeAdapter(responses.ResponseStreamEvent).validate_python(each) async for each in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    error, failed = events[-2:]
    assert (error.type, failed.type, failed.response.status) == ("error", "response.failed", "failed")
    assert "lost" in error.message
    assert failed.response.error.message == error.message
    (message,) = failed.response.output
    assert (message.status, len(message.content[0].text)) == ("incomplete", 1)


async def test_errors_of_paths_that_are_not_there_have_the_shape_of_their_api() -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.anthropic() as client:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.batches.list()
        TypeAdapter(claude.ErrorResponse).validate_python(caught.value.body)
        assert caught.value.request_id == caught.value.body["request_id"]  # type: ignore[index]
