"""How a family of models writes tool calls: the contract of a format."""

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.core.text.chat_message import FunctionCall

Piece = str | FunctionCall  # what a text turns out to be: text, or a call


class CallParser(ABC):
    """Finds the tool calls in one answer, whose text comes in pieces.

    What is no call is text; blanks around calls are dropped.
    """

    @abstractmethod
    def push(self, text: str) -> list[Piece]:
        """Adds text and returns what is certain by now."""

    @abstractmethod
    def finish(self) -> list[Piece]:
        """Ends the answer and returns the rest."""


class ToolFormat(ABC):
    """One way of writing tool calls."""

    @abstractmethod
    def parser(self, names: Collection[str]) -> CallParser:
        """A parser for one answer.

        Args:
            names: of the tools that the model was offered.
        """

    @abstractmethod
    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        """Tells a model of the tools and how to call them, where its chat template does not."""

    @abstractmethod
    def call_text(self, call: FunctionCall) -> str:
        """A call as the model would have written it."""

    @abstractmethod
    def call_start(self, name: str) -> str:
        """How an answer begins that is a call: up to the arguments of the tool of that name; if that is empty, up to the name.

        It does not end with a blank, with which tokenizers begin the next word.
        """

    def new_call_id(self) -> str:
        """An id for a call that the model has written without one."""
        return f"call_{secrets.token_hex(12)}"

    def call(self, text: str) -> FunctionCall | None:
        """The call that a JSON object stands for; None: it stands for none."""
        try:
            return self.call_of(json.loads(text))
        except (ValueError, RecursionError):
            return None

    def call_of(self, value: Any) -> FunctionCall | None:
        """The call of `{"name": …, "arguments": {…}}`, or with `parameters`; None: it is something else."""
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # some models write the object once more as a string
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=False)
        try:
            (name + written).encode()
        except UnicodeEncodeError:  # half of a surrogate pair: no answer could contain it
            return None
        return FunctionCall(name, written, self.new_call_id())


def overlap(text: str, tag: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
