"""Fields that several of OpenAI's requests have.

A field of the API that this service does not implement is accepted at the value that changes nothing, and refused by name
at any other. Fields that say nothing about the answer (`user`, `store`, …) are accepted and have no effect.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.workflow.logprobs import MAX_TOP
from pbkv_cluster.gateway.http.wire.body import Body, Items
from pbkv_cluster.gateway.http.wire.problems import InvalidField

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
Neutral = Annotated[Any, Field(description="not implemented: only the value that changes nothing is accepted")]
Ignored = Annotated[Any, Field(description="accepted; has no effect")]
Metadata = Annotated[dict[str, Any], Field(description="workflow, agent, call_site and workload name the step's")]


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
    continuous_usage_stats: Literal[False] | None = None

    @staticmethod
    def with_usage(options: "StreamOptions | None") -> bool:
        """Whether a stream ends with an event that has the usage."""
        return options is not None and bool(options.include_usage)


def refuse(body: Body, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses fields that are not implemented.

    Args:
        body: of the request.
        neutral: by field, the values beside null that change nothing.

    Raises:
        InvalidField: a field has another value.
    """
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
        ):
            raise InvalidField(name, f"{name} is not supported by this server", code="unsupported_parameter")


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
