"""Converts text to tokens and back with the model's tokenizer. The gateway encodes, the workers decode."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.tokens import pack


class TextCodec:
    """A model's tokenizer, reduced to what the service needs. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        """Args:
        tokenizer: one of `transformers`.
        """
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str, revision: str = "main") -> "TextCodec":
        """Loads the tokenizer of the model at `path` (a local directory or a hub id).

        Raises:
            StartupError: there is no tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(path, revision=revision))
        except (OSError, ValueError) as error:
            raise StartupError(f"model.path: no tokenizer can be loaded from {path!r}: {error}") from error

    def encode(self, text: str) -> bytes:
        """Packed token ids of a prompt, with the special tokens that the model expects around it."""
        return pack(self._tokenizer.encode(text))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        """Packed token ids of a conversation in the model's chat template, up to where the assistant's answer begins.

        Raises:
            InvalidArgument: the model has no chat template, or the template refuses the messages.
        """
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            raise InvalidArgument("prompt.messages", "this model has no chat template; send text or token_ids")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidArgument("prompt.messages", f"the model's chat template refuses them: {error}") from error
        return pack(self._tokenizer.encode(text, add_special_tokens=False))

    def count(self, text: str) -> int:
        """Number of tokens of a text, without special tokens around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output tokens, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def vocab_size(self) -> int:
        """Number of the tokenizer's ids, including added tokens. The model's vocabulary may be padded to more."""
        return len(self._tokenizer)
