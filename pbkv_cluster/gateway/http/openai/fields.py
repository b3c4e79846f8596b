"""Fields that several of OpenAI's requests have.

A field of the API that this service does not implement is `Neutral`: accepted at the values that change nothing, and refused
by name at any other. Fields that say nothing about the answer (`user`, `store`, …) are accepted and have no effect.
"""

from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.workflow.logprobs import MAX_TOP
from pbkv_cluster.gateway.http.wire.body import AnyJson, Body, Items, JsonObject, UnusedJson
from pbkv_cluster.gateway.http.wire.wrong_fields import UNSUPPORTED

ANY_LENGTH = 2**31 - 1  # as many tokens as fit in the context
MAX_CHOICES = 16

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MaxTokens = Annotated[int, Field(ge=1, le=ANY_LENGTH)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Stop = StopString | Annotated[Items[StopString], Field(max_length=16)]
Ignored = Annotated[UnusedJson, Field(description="accepted; has no effect")]
Arguments = Annotated[str, Field(description="a JSON object", json_schema_extra={"contentMediaType": "application/json"})]
Metadata = Annotated[JsonObject, Field(description="workflow, agent, call_site and workload name the step's")]

ToolChoice = Annotated[
    AnyJson,
    Field(description="auto, none, required, or a function by its name"),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [None, "auto", "none", "required"]},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "properties": {"name": {"type": "string", "minLength": 1}},
                            "required": ["name"],
                            "additionalProperties": False,
                        },
                    },
                    "required": ["type", "function"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {"type": {"const": "function"}, "name": {"type": "string", "minLength": 1}},
                    "required": ["type", "name"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class Neutral:
    """Of a field that is not implemented: null and the values that change nothing are accepted."""

    def __init__(self, *values: Any) -> None:
        """`values`: those beside null."""
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._values], "description": "not implemented: only values that change nothing are accepted"}

    def _check(self, value: Any) -> Any:
        # True is no 1, as JSON has it.
        if value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self._values):
            return value
        raise PydanticCustomError(UNSUPPORTED, "not supported by this server")


class AgentHints(Body):
    """`nvext.agent_hints` of Dynamo."""

    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    strict_priority: Ignored = None
    osl: Ignored = None
    speculative_prefill: Ignored = None
    latency_sensitivity: Ignored = None


class Nvext(Body):
    """Dynamo's extension of OpenAI's requests."""

    agent_hints: AgentHints | None = None

    @staticmethod
    def priority(nvext: "Nvext | None") -> int | None:
        """Higher goes first among the waiting."""
        return None if nvext is None or nvext.agent_hints is None else nvext.agent_hints.priority


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None
    continuous_usage_stats: Annotated[Any, Neutral(False)] = None

    @staticmethod
    def with_usage(options: "StreamOptions | None") -> bool:
        """Whether a stream ends with an event that has the usage."""
        return options is not None and bool(options.include_usage)


def sampling(
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: str | list[str] | None,
    ignore_eos: bool | None = None,
    top_logprobs: int | None = None,
) -> SamplingOptions:
    """Sampling with the defaults of OpenAI's API, where a model answers at temperature 1."""
    return SamplingOptions(
        max_tokens=max_tokens,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=None if seed is None else seed % 2**64,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=bool(ignore_eos),
        top_logprobs=top_logprobs,
    )
