"""Tokens of a prompt, without a step."""

from dataclasses import dataclass

from starlette.requests import Request

from pbkv_cluster.core import tokens
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.step.admission.counted_prompts import CountedPrompts
from pbkv_cluster.gateway.step.request import Prompt


@dataclass(frozen=True, slots=True)
class Tokenization:
    """What a prompt is to the model."""

    token_ids: list[int]
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class Counter:
    """Tokenises prompts as the gateway does before it places a step."""

    prompts: CountedPrompts

    async def tokenize(self, request: Request, prompt: Prompt, size_bytes: int) -> Tokenization:
        """Args:
            request: names the tenant.
            prompt: of it.
            size_bytes: of the request's body.

        Raises:
            InvalidArgument: the prompt is empty, or fits in no context.
            LimitExceeded: too many requests are in flight already, of all or of the tenant.
            PermissionDenied: the tenant is not the caller's.
            Unavailable: no worker says what the model takes.
        """
        read = await self.prompts.read(prompt, size_bytes, read_hints(request.headers).tenant)
        return Tokenization(tokens.unpack(read.packed), self.prompts.limits().max_context_tokens)
