"""Turns prompts of any form into packed tokens with their block keys."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import InvalidArgument, PromptTooLong
from pbkv_cluster.core.fairness.fair_turn import FairTurn
from pbkv_cluster.core.text.chat_message import check_messages
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.text.token_bound import has_more_tokens
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.gateway.routing.prompt_keys import PromptKeys
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt

# No tokenizer in use has a longer token. A text that has more bytes for every token of the context is refused before time is
# spent on it.
_MAX_TOKEN_BYTES = 256
# Packed tokens up to this size are hashed in about the time that a hop to a thread and back takes.
_INLINE_BYTES = 8192 * tokens.TOKEN_BYTES
# Prompts from this size on wait for one another, tenant by tenant, so that a thread is left for the others.
_LARGE_CHARACTERS = 65_536
# Tokens decoded for the beginning of a prompt that came as tokens: at some four characters each, more than enough.
_BEGINNING_TOKENS = 128


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the workers take it."""

    packed: bytes
    keys: PromptKeys  # of its full blocks
    pieces: tuple[int, ...] = ()  # see `core.text.prompt_pieces`
    beginning: str | None = None  # of the text that states the task; None: the prompt came as tokens

    @property
    def tokens(self) -> int:
        return tokens.count(self.packed)


class PromptReader:
    """Reads prompts: on a thread of the executor, unless the hop to it would take longer than the work."""

    def __init__(self, codec: TextCodec, executor: Executor) -> None:
        self._codec = codec
        self._executor = executor
        self._one_large = FairTurn()

    async def read(self, prompt: Prompt, limits: ModelLimits, tenant: str) -> TokenizedPrompt:
        """Raises:
        InvalidArgument: the prompt is empty, holds ids outside the vocabulary, or leaves no room for one token of output;
            names its form.
        """
        if isinstance(prompt, TokenPrompt) and len(prompt.packed) <= _INLINE_BYTES:
            return self._read(prompt, limits, tenant)
        if _characters(prompt) < _LARGE_CHARACTERS:
            return await self._read_on_thread(prompt, limits, tenant)
        async with self._one_large.of(tenant):
            return await self._read_on_thread(prompt, limits, tenant)

    def beginning(self, prompt: TokenizedPrompt) -> str:
        """The beginning of the text that states the task."""
        if prompt.beginning is not None:
            return prompt.beginning
        return self._codec.decode(tokens.unpack(prompt.packed[: _BEGINNING_TOKENS * tokens.TOKEN_BYTES]))

    async def _read_on_thread(self, prompt: Prompt, limits: ModelLimits, tenant: str) -> TokenizedPrompt:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, prompt, limits, tenant)

    def _read(self, prompt: Prompt, limits: ModelLimits, tenant: str) -> TokenizedPrompt:
        field, packed = self._pack(prompt, limits)
        if not packed:
            raise InvalidArgument(field, "must hold at least one token")
        length = tokens.count(packed)
        if length >= limits.max_context_tokens:
            raise PromptTooLong(
                field,
                f"{length} tokens leave no room for output in a context of {limits.max_context_tokens}; "
                f"at most {limits.max_context_tokens - 1} fit",
            )
        tokens.check_ids(field, packed, limits.vocab_size)
        keys = PromptKeys(packed, tenant, limits.namespaces)
        return TokenizedPrompt(packed, keys, prompt_pieces(packed), _beginning(prompt))

    def _pack(self, prompt: Prompt, limits: ModelLimits) -> tuple[str, bytes]:
        """The field that the prompt has on the wire, and its packed tokens."""
        match prompt:
            case TextPrompt():
                self._check_size("prompt.text", [prompt.text], limits)
                return "prompt.text", self._codec.encode(prompt.text) if prompt.text else b""
            case ChatPrompt():
                return "prompt.messages", self._pack_chat(prompt, limits)
            case TokenPrompt():
                return "prompt.token_ids", prompt.packed

    def _pack_chat(self, chat: ChatPrompt, limits: ModelLimits) -> bytes:
        check_messages(chat.messages)
        texts = [text for message in chat.messages for text in message.texts]
        self._check_size("prompt.messages", [*texts, *map(json.dumps, chat.tools), chat.answer], limits)
        return self._codec.encode_chat(chat.messages, chat.tools, chat.answer)

    def _check_size(self, field: str, texts: Sequence[str], limits: ModelLimits) -> None:
        """Refuses texts that cannot fit in the context before they are tokenised, or rendered, as a whole."""
        context = limits.max_context_tokens
        size = sum(len(text.encode()) for text in texts)
        if size > _MAX_TOKEN_BYTES * context:
            raise PromptTooLong(field, f"{size} bytes cannot fit in a context of {context} tokens")
        if has_more_tokens(texts, context, self._codec.count):
            raise PromptTooLong(field, f"has more tokens than fit in a context of {context}; at most {context - 1} fit")


def _beginning(prompt: Prompt) -> str | None:
    """Of a conversation, what its user says first: the text before it is most often the same for all tasks."""
    match prompt:
        case TextPrompt():
            return prompt.text[:TEXT_CHARACTERS]
        case ChatPrompt():
            first = next((message for message in prompt.messages if message.role == "user"), prompt.messages[0])
            return first.text[:TEXT_CHARACTERS]
        case TokenPrompt():
            return None


def _characters(prompt: Prompt) -> int:
    """About the size of a prompt."""
    match prompt:
        case TextPrompt():
            return len(prompt.text)
        case ChatPrompt():
            return sum(message.characters for message in prompt.messages)
        case TokenPrompt():
            return len(prompt.packed)
