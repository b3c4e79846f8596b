"""Prompts in any form to packed tokens, their block keys, and sampling parameters that fit them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from pbkv_cluster.core import tokens
from pbkv_cluster.core.blocks import Namespace, block_keys, chain_keys
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import types_pb2

# No tokenizer in use has a token of more characters than this; a text that exceeds it for every token of the context
# is refused before time is spent on it.
_MAX_TOKEN_CHARS = 256
# To hash so many packed tokens takes about as long as the way to a thread and back.
_INLINE_BYTES = 8192 * tokens.TOKEN_BYTES
# Tokens of which the beginning of a text is made that comes as tokens: at some four characters each, more than enough of it.
_BEGINNING_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model can take."""

    namespace: Namespace  # of the workers; the salt is replaced by the tenant
    vocab_size: int
    max_context_tokens: int  # prompt and output together


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the workers take it."""

    packed: bytes
    keys: Sequence[bytes]  # of its full blocks
    namespace: Namespace  # salted
    pieces: tuple[int, ...] = ()  # see `core/pieces.py`
    beginning: str | None = None  # of the text that tells the task; None: the prompt came as tokens

    @property
    def tokens(self) -> int:
        return tokens.count(self.packed)

    def output_keys(self, output: bytes) -> list[bytes]:
        """Keys of the full blocks behind the prompt's own, once `output` (packed) has been generated.

        The last output token never went through the model, so it has no KV and fills no block.
        """
        full = len(self.keys) * tokens.BLOCK_BYTES
        tail = self.packed[full:] + output[: -tokens.TOKEN_BYTES]
        return chain_keys(self.keys[-1] if self.keys else self.namespace.digest(), tail)


class PromptReader:
    """Reads prompts; off the event loop, where that is more work than the way to another thread and back."""

    def __init__(self, codec: TextCodec, executor: Executor) -> None:
        self._codec = codec
        self._executor = executor

    async def read(self, message: types_pb2.Prompt, limits: Limits, tenant: str) -> Prompt:
        """Raises:
        InvalidArgument: no form is set, it is empty, holds ids outside the vocabulary, or leaves no room for one
            token of output; names the form.
        """
        if message.WhichOneof("form") == "token_ids" and len(message.token_ids.data) <= _INLINE_BYTES:
            return self._read(message, limits, tenant)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, message, limits, tenant)

    def _read(self, message: types_pb2.Prompt, limits: Limits, tenant: str) -> Prompt:
        field, packed = self._pack(message, limits)
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
        return Prompt(packed, block_keys(namespace, packed), namespace, prompt_pieces(packed), _beginning(message))

    def beginning(self, prompt: Prompt) -> str:
        """The beginning of the text that tells the task."""
        if prompt.beginning is not None:
            return prompt.beginning
        return self._codec.decode(tokens.unpack(prompt.packed[: _BEGINNING_TOKENS * tokens.TOKEN_BYTES]))

    def _pack(self, message: types_pb2.Prompt, limits: Limits) -> tuple[str, bytes]:
        match message.WhichOneof("form"):
            case "text":
                _check_size("prompt.text", len(message.text), limits)
                return "prompt.text", self._codec.encode(message.text) if message.text else b""
            case "messages":
                return "prompt.messages", self._pack_chat(message.messages, limits)
            case "token_ids":
                return "prompt.token_ids", convert.packed_from_wire(message.token_ids, "prompt.token_ids")
        raise InvalidArgument("prompt", "one of text, messages and token_ids must be set")

    def _pack_chat(self, chat: types_pb2.ChatMessages, limits: Limits) -> bytes:
        if not chat.messages:
            raise InvalidArgument("prompt.messages", "must hold at least one message")
        for position, entry in enumerate(chat.messages):
            if not entry.role:
                raise InvalidArgument("prompt.messages.role", f"must not be empty, in message {position}")
        _check_size("prompt.messages", sum(len(entry.content) for entry in chat.messages), limits)
        return self._codec.encode_chat([{"role": entry.role, "content": entry.content} for entry in chat.messages])


def _beginning(message: types_pb2.Prompt) -> str | None:
    """Of a conversation, what its user says first: what stands before is most often alike for all tasks."""
    match message.WhichOneof("form"):
        case "text":
            return message.text[:TEXT_CHARACTERS]
        case "messages":
            chat = message.messages.messages
            first = next((entry for entry in chat if entry.role == "user"), chat[0])
            return first.content[:TEXT_CHARACTERS]
    return None


def read_sampling(message: types_pb2.Sampling, allow_forced: bool) -> SamplingParams:
    """Complete parameters, the seed included, so that a retry repeats the same tokens.

    Raises:
        InvalidArgument: a value is out of its range.
        FailedPrecondition: forced output, where this server does not replay.
    """
    params = convert.sampling_from_wire(message)
    if params.forced_output is not None and not allow_forced:
        raise FailedPrecondition("sampling.forced_output: this server does not replay (engine.allow_forced_output)")
    return params


def fit_sampling(params: SamplingParams, prompt_tokens: int, limits: Limits) -> SamplingParams:
    """Parameters that the model can follow behind a prompt of `prompt_tokens`.

    `max_tokens` beyond the context is cut to what fits: the answer then ends with LENGTH, as it would at any other limit,
    and a client need not know how long its prompt is in tokens.

    Raises:
        InvalidArgument: forced output holds ids outside the vocabulary.
    """
    if params.forced_output is not None:
        tokens.check_ids("sampling.forced_output", params.forced_output, limits.vocab_size)
    return replace(params, max_tokens=min(params.max_tokens, limits.max_context_tokens - prompt_tokens))


def _check_size(field: str, chars: int, limits: Limits) -> None:
    if chars > _MAX_TOKEN_CHARS * limits.max_context_tokens:
        raise InvalidArgument(field, f"{chars} characters cannot fit in a context of {limits.max_context_tokens} tokens")
