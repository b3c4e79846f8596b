"""Converts text to tokens and back with the model's tokenizer. The gateway encodes, the workers decode."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.text.chat_template import ChatTemplate
from pbkv_cluster.core.tokens import pack


class TextCodec:
    """A model's tokenizer, reduced to what the service needs. Thread-safe."""

    def __init__(self, tokenizer: Any, chat_template: str = "") -> None:
        """Args:
        tokenizer: one of `transformers`.
        chat_template: name of one of its chat templates; empty: its default.

        Raises:
            StartupError: there is no such chat template, or it is malformed.
        """
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, chat_template)

    @classmethod
    def load(cls, path: str, revision: str = "main", chat_template: str = "", field: str = "model.path") -> "TextCodec":
        """Loads the tokenizer of the model at `path` (a local directory or a hub id), which a setting names.

        Raises:
            StartupError: there is no tokenizer, or it is malformed, or it has no such chat template.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
            usable = bool(tokenizer.encode("a", add_special_tokens=False))
        # Errors of the tokenizers library are plain Exceptions, and files that are not what they should be lead to any other.
        except Exception as error:
            problem = str(error) if isinstance(error, OSError | ValueError) else f"it is malformed ({error})"
            raise StartupError(f"{field}: no tokenizer can be loaded from {path!r}: {problem}") from error
        if not usable:
            raise StartupError(f"{field}: the tokenizer in {path!r} is malformed: it has no token for the letter a")
        return cls(tokenizer, chat_template)

    def encode(self, text: str) -> bytes:
        """Packed token ids of a prompt, with the special tokens that the model expects around it."""
        return pack(self._tokenizer.encode(text))

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return self._template

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = (), answer: str = "") -> bytes:
        """Packed token ids of a conversation in the model's chat template, up to the end of the assistant's `answer` so far.

        Raises:
            InvalidArgument: the template refuses the messages or loses a part of them, or there are several and no default.
        """
        return pack(self._tokenizer.encode(self._template.render(messages, tools) + answer, add_special_tokens=False))

    def count(self, text: str) -> int:
        """Number of tokens of a text, without special tokens around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output tokens, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token: int) -> str:
        """What one token adds to a text; of one that is a part of a character, the replacement character."""
        if token in self.special_tokens:
            return self.special_tokens[token]
        # After another token, because some decoders leave out the space before the first word that they see.
        return self.decode([self._letter, token])[len(self.decode([self._letter])) :]

    @cached_property
    def _letter(self) -> int:
        """A token that is a text by itself."""
        letter: int = self._tokenizer.encode("a", add_special_tokens=False)[-1]
        return letter

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """What is written for each token that `decode` leaves out."""
        added = {token: str(content) for token, content in self._tokenizer.added_tokens_decoder.items()}
        added |= dict(zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True))
        return {token: text for token, text in added.items() if token is not None and text and not self.decode([token])}

    @cached_property
    def vocab_size(self) -> int:
        """Number of the tokenizer's ids, including added tokens. The model's vocabulary may be padded to more."""
        return len(self._tokenizer)
