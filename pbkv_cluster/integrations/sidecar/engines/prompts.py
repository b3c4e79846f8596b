"""What a choice compares of a prompt: its text in pieces, and with a tokenizer that agrees with the engines its token ids."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import check_messages
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.text.words import all_hashed_words
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.integrations.sidecar.reading.asked import Asked
from pbkv_cluster.store.kv_events.engine_blocks import prefix_keys
from pbkv_cluster.store.kv_events.messages import extra_of

log = logging.getLogger(__name__)

_INLINE_CHARACTERS = 16_384  # read on the event loop if there is no tokenizer
_WORDS_CHARACTERS = 400_000  # of a prompt whose words stand for its tokens


@dataclass(frozen=True, slots=True)
class RoutedPrompt:
    """A prompt as engines are compared for it."""

    keys: Sequence[bytes]  # of its text's pieces of 64 bytes, each for about 16 tokens
    tokens: int  # about, unless `packed` says it
    packed: bytes | None  # token ids; None: not known, or not trusted
    counted: int | None  # tokens by the tokenizer, trusted or not
    first_extra: bytes  # what distinguishes its first block beside its tokens
    pieces: tuple[int, ...]  # see `core.text.prompt_pieces`


class PromptReader:
    """Reads prompts. A tokenizer or a chat template that differs from the engines' shows by the number of tokens."""

    def __init__(self, codec: TextCodec | None) -> None:
        """`codec`: of the engines' tokenizer; None: prompts are compared by their text."""
        self._codec = codec
        self.is_trusted = True
        self.mismatches = 0  # prompts of which an engine has counted other tokens

    @property
    def compares_tokens(self) -> bool:
        """Whether prompts are compared by their token ids."""
        return self._codec is not None and self.is_trusted

    async def read(self, asked: Asked, cache_salt: str) -> RoutedPrompt:
        """Args:
        asked: the request.
        cache_salt: that the engine gets.
        """
        size = len(asked.text) + sum(message.characters for message in asked.messages)
        if self._codec is None and size <= _INLINE_CHARACTERS:
            return self._read(asked, cache_salt)
        return await asyncio.to_thread(self._read, asked, cache_salt)

    def check(self, prompt: RoutedPrompt, prompt_tokens: int | None) -> None:
        """An engine has counted the tokens of a prompt."""
        if prompt.counted is None or prompt_tokens is None:
            return
        agree = prompt.counted == prompt_tokens
        if not agree:
            self.mismatches += 1
            if self.is_trusted:
                log.warning(
                    "an engine has counted %d tokens of a prompt, and the tokenizer %d: prompts are compared by their text",
                    prompt_tokens,
                    prompt.counted,
                )
        self.is_trusted = agree

    def _read(self, asked: Asked, cache_salt: str) -> RoutedPrompt:
        text = _as_text(asked)
        # The pieces of text are as long as blocks of packed tokens, four bytes for each.
        keys = prefix_keys(text.encode() or asked.packed, BLOCK_TOKENS, f"{asked.model}\0{cache_salt}".encode())
        packed = asked.packed or self._tokenized(asked)
        trusted = packed if self.is_trusted or asked.packed else None
        words = packed or tokens.pack(all_hashed_words(text[:_WORDS_CHARACTERS]))
        return RoutedPrompt(
            keys=keys,
            tokens=tokens.count(packed) if packed else len(keys) * BLOCK_TOKENS,
            packed=trusted or None,
            counted=tokens.count(packed) if packed else None,
            first_extra=extra_of([cache_salt] if cache_salt else []),
            pieces=prompt_pieces(words),
        )

    def _tokenized(self, asked: Asked) -> bytes:
        if self._codec is None or not asked.is_plain:
            return b""
        try:
            if not asked.messages:
                return self._codec.encode(asked.text) if asked.text else b""
            check_messages(asked.messages)
            return self._codec.encode_chat(asked.messages, asked.tools)
        except InvalidArgument:  # the template does not take it; whether the engine's does, it will tell
            return b""


def _as_text(asked: Asked) -> str:
    """The prompt about as a chat template writes it: tools first, then each message after its role."""
    if not asked.messages:
        return asked.text
    tools = json.dumps(asked.tools, sort_keys=True) if asked.tools else ""
    return "\0".join([tools, *("\1".join(message.texts) for message in asked.messages)])
