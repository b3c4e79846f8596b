"""What a client sees of a running step: one Accepted, Tokens as they are generated, one Finished.

Where a worker sends the client these itself, a gateway says so instead.
"""

from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core import tokens
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs


class FinishReason(StrEnum):
    """Why the output of a step ended."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"  # the model's end-of-sequence token, or a stop string
    LENGTH = "length"  # max_tokens, the end of the model's context, or the end of forced output
    CANCELLED = "cancelled"  # the workflow ended


@dataclass(frozen=True, slots=True)
class Accepted:
    """The step has been placed on a worker for the first time."""

    step: int  # number in the workflow, from 0
    worker_id: str  # where it starts; `usage.worker_id` says where it finished
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A part of the output. The text lags behind the tokens while it could be the start of a stop string."""

    packed: bytes  # token ids, see `core.tokens`
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, if they were asked for

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(tokens.unpack(self.packed))


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the output."""

    reason: FinishReason
    usage: Usage


StepEvent = Accepted | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Invitation:
    """A receiver may connect to a worker, which sends it the output of later steps."""

    address: str  # host:port
    ticket: bytes
    tenant: str  # whose steps these are


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The client has had an event from the worker, and is not sent it again."""

    event: StepEvent


@dataclass(frozen=True, slots=True)
class AllHandedOver:
    """The client has had all events from the worker, and the gateway knows how the step has ended."""


GatewayEvent = StepEvent | Invitation | HandedOver | AllHandedOver
