"""Turns prompts of any form into packed tokens with their block keys."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from pbkv_cluster.core import tokens
from pbkv_cluster.core.blocks import Namespace, block_keys, chain_keys
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import check_messages
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt

# No tokenizer in use has a longer token. A text that has more characters for every token of the context is refused before
# time is spent on it.
_MAX_TOKEN_CHARS = 256
# Packed tokens up to this size are hashed in about the time that a hop to a thread and back takes.
_INLINE_BYTES = 8192 * tokens.TOKEN_BYTES
# Tokens decoded for the beginning of a prompt that came as tokens: at some four characters each, more than enough.
_BEGINNING_TOKENS = 128


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the workers take it."""

    packed: bytes
    keys: Sequence[bytes]  # of its full blocks
    namespace: Namespace  # salted with the tenant
    pieces: tuple[int, ...] = ()  # see `core.text.prompt_pieces`
    beginning: str | None = None  # of the text that states the task; None: the prompt came as tokens

    @property
    def tokens(self) -> int:
        return tokens.count(self.packed)

    def output_keys(self, output: bytes) -> list[bytes]:
        """Keys of the full blocks that follow the prompt's own once `output` (packed) has been generated.

        The last output token never went through the model, so it has no KV and fills no block.
        """
        full = len(self.keys) * tokens.BLOCK_BYTES
        tail = self.packed[full:] + output[: -tokens.TOKEN_BYTES]
        return chain_keys(self.keys[-1] if self.keys else self.namespace.digest(), tail)


class PromptReader:
    """Reads prompts: on a thread of the executor, unless the hop to it would take longer than the work."""

    def __init__(self, codec: TextCodec, executor: Executor) -> None:
        self._codec = codec
        self._executor = executor

    async def read(self, prompt: Prompt, limits: ModelLimits, tenant: str) -> TokenizedPrompt:
        """Raises:
        InvalidArgument: the prompt is empty, holds ids outside the vocabulary, or leaves no room for one token of output;
            names its form.
        """
        if isinstance(prompt, TokenPrompt) and len(prompt.packed) <= _INLINE_BYTES:
            return self._read(prompt, limits, tenant)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, prompt, limits, tenant)

    def beginning(self, prompt: TokenizedPrompt) -> str:
        """The beginning of the text that states the task."""
        if prompt.beginning is not None:
            return prompt.beginning
        return self._codec.decode(tokens.unpack(prompt.packed[: _BEGINNING_TOKENS * tokens.TOKEN_BYTES]))

    def _read(self, prompt: Prompt, limits: ModelLimits, tenant: str) -> TokenizedPrompt:
        field, packed = self._pack(prompt, limits)
        if not packed:
            raise InvalidArgument(field, "must hold at least one token")
        tokens.check_ids(field, packed, limits.vocab_size)
        length = tokens.count(packed)
        if length >= limits.max_context_tokens:
            raise InvalidArgument(
                field,
                f"{length} tokens leave no room for output in a context of {limits.max_context_tokens}; "
                f"at most {limits.max_context_tokens - 1} fit",
            )
        namespace = replace(limits.namespace, salt=tenant)
        keys = block_keys(namespace, packed)
        return TokenizedPrompt(packed, keys, namespace, prompt_pieces(packed), _beginning(prompt))

    def _pack(self, prompt: Prompt, limits: ModelLimits) -> tuple[str, bytes]:
        """The field that the prompt has on the wire, and its packed tokens."""
        match prompt:
            case TextPrompt():
                _check_size("prompt.text", len(prompt.text), limits)
                return "prompt.text", self._codec.encode(prompt.text) if prompt.text else b""
            case ChatPrompt():
                return "prompt.messages", self._pack_chat(prompt, limits)
            case TokenPrompt():
                return "prompt.token_ids", prompt.packed

    def _pack_chat(self, chat: ChatPrompt, limits: ModelLimits) -> bytes:
        check_messages(chat.messages)
        _check_size("prompt.messages", sum(message.characters for message in chat.messages), limits)
        return self._codec.encode_chat(chat.messages)


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


def _check_size(field: str, chars: int, limits: ModelLimits) -> None:
    if chars > _MAX_TOKEN_CHARS * limits.max_context_tokens:
        raise InvalidArgument(field, f"{chars} characters cannot fit in a context of {limits.max_context_tokens} tokens")
