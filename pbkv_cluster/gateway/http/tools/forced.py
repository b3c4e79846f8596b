"""Calls that a client demands (`tool_choice`): the model is made to begin one, and what comes of it is checked.

The prompt ends with the beginning of a call, up to the tool's name or to its arguments, so the model can only go on with it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.wire.problems import InvalidField, NoToolCall


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """A call that an answer must have."""

    name: str = ""  # of the tool; empty: any that is offered

    @classmethod
    def of(cls, name: str, offered: Collection[str]) -> "ForcedCall":
        """The call of a tool by its name, or of any that is offered if it is empty; where there is one alone, of that.

        Raises:
            InvalidField: there is no such tool, or none at all.
        """
        if not offered:
            raise InvalidField("tool_choice", "tool_choice: a call is demanded, and there are no tools")
        if name and name not in offered:
            raise InvalidField("tool_choice", f"tool_choice: there is no tool {name[:256]!r}")
        return cls(next(iter(offered)) if len(offered) == 1 else name)

    def check_called(self, call: FunctionCall | None, names: Collection[str]) -> None:
        """Checks the first call of an answer; None: it has none.

        Raises:
            NoToolCall: it is not the one that was demanded.
        """
        if call is None:
            raise NoToolCall("tool_choice: what the model has written is no call of a tool")
        if call.name not in ((self.name,) if self.name else names):
            raise NoToolCall(f"tool_choice: the model has called {call.name[:256]!r}, which is no tool that it may call")
