"""JSON schemas of the answers of Anthropic's API."""

from pbkv_cluster.gateway.http.wire.schemas import COUNT, TEXT, array, one_of, or_null, record

MESSAGE = record(
    id=TEXT,
    type=one_of("message"),
    role=one_of("assistant"),
    model=TEXT,
    content=array(record(type=one_of("text", "tool_use"))),
    stop_reason=one_of("max_tokens", "tool_use", "stop_sequence", "end_turn"),
    stop_sequence=or_null(TEXT),
    usage=record(input_tokens=COUNT, cache_creation_input_tokens=COUNT, cache_read_input_tokens=COUNT, output_tokens=COUNT),
)
TOKEN_COUNT = record(input_tokens=COUNT)
