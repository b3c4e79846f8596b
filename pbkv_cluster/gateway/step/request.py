"""A step as a front door submits it: plain values, nothing filled in and little checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pbkv_cluster.core import tokens
from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.workflow.receiver import Receiver
from pbkv_cluster.core.workflow.resumption import Resumption


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Rendered with the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # that the assistant may call, see `ChatTemplate.render`
    answer: str = ""  # beginning of the assistant's answer, after which the model goes on


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    packed: bytes  # whole token ids, see `core.tokens`


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One step of a workflow."""

    workflow_id: str
    agent: str
    prompt: Prompt
    call_site: str = ""
    parent_step: int | None = None  # None: the latest step
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    priority: int = 0  # higher goes first among the waiting
    tenant: str = ""  # empty: the workflow's
    timeout_s: float | None = None  # seconds from its arrival after which nobody waits for it; None: for as long as its call
    step_id: str = ""  # requests of a workflow with the same are one step; empty: this one is
    resume: Resumption | None = None  # what the client has of the step; only with `step_id`
    receiver: Receiver | None = None  # who takes the output straight from the worker, if it can; only with `step_id`
    after: tuple[
        str, ...
    ] = ()  # ids of steps of the workflow that the client knows to have ended, and this gateway may not yet


def shown(prompt: Prompt) -> str:
    """A prompt as a log shows it, where logs may."""
    match prompt:
        case TextPrompt(text):
            return text
        case ChatPrompt(messages):
            return "\n".join(f"{message.role}: {message.text}" for message in messages)
        case TokenPrompt(packed):
            return f"{tokens.count(packed)} token ids"
