"""JSON schemas of the answers of OpenAI's API."""

from pbkv_cluster.gateway.http.wire.schemas import COUNT, TEXT, array, one_of, or_null, record

_FINISH = one_of("stop", "length", "tool_calls")
_USAGE = record(
    prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT, prompt_tokens_details=record(cached_tokens=COUNT)
)
_MESSAGE = record(role=one_of("assistant"), content=or_null(TEXT), refusal=one_of(None))
_MESSAGE["properties"]["tool_calls"] = array(
    record(id=TEXT, type=one_of("function"), function=record(name=TEXT, arguments=TEXT))
)

MODEL = record(
    id=TEXT,
    object=one_of("model"),
    created=COUNT,
    owned_by=TEXT,
    type=one_of("model"),
    display_name=TEXT,
    created_at=TEXT,
    lifecycle=one_of("active"),
)
MODELS = record(object=one_of("list"), data=array(MODEL), has_more=one_of(False), first_id=TEXT, last_id=TEXT)
CHAT_COMPLETION = record(
    id=TEXT,
    object=one_of("chat.completion"),
    created=COUNT,
    model=TEXT,
    choices=array(
        record(
            index=COUNT, message=_MESSAGE, logprobs=or_null(record(content=array(record(token=TEXT)))), finish_reason=_FINISH
        )
    ),
    usage=_USAGE,
)
COMPLETION = record(
    id=TEXT,
    object=one_of("text_completion"),
    created=COUNT,
    model=TEXT,
    choices=array(record(index=COUNT, text=TEXT, logprobs=or_null(record(tokens=array(TEXT))), finish_reason=_FINISH)),
    usage=_USAGE,
)
RESPONSE = record(
    id=TEXT,
    object=one_of("response"),
    created_at=COUNT,
    model=TEXT,
    status=one_of("completed", "incomplete"),
    output=array(record(id=TEXT, type=one_of("message", "function_call"))),
    usage=record(
        input_tokens=COUNT,
        input_tokens_details=record(cached_tokens=COUNT),
        output_tokens=COUNT,
        total_tokens=COUNT,
    ),
)
TOKENS = record(count=COUNT, max_model_len=COUNT, tokens=array(COUNT))
