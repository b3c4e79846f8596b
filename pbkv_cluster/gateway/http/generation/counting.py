"""Tokens of a prompt, without a step."""

from dataclasses import dataclass

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.request import Prompt


@dataclass(frozen=True, slots=True)
class Tokenization:
    """What a prompt is to the model."""

    token_ids: list[int]
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class Counter:
    """Tokenises prompts as the gateway does before it places a step."""

    prompts: PromptReader
    pool: WorkerPool

    async def tokenize(self, prompt: Prompt) -> Tokenization:
        """Raises:
        InvalidArgument: the prompt is empty, or fits in no context.
        Unavailable: no worker says what the model takes.
        """
        if (limits := self.pool.limits()) is None:
            raise Unavailable("no worker is reachable")
        read = await self.prompts.read(prompt, limits, "")
        return Tokenization(tokens.unpack(read.packed), limits.max_context_tokens)
