"""Tools in a conversation, for chat templates that know of them and for those that do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.gateway.http.tools.base import ToolFormat
from pbkv_cluster.gateway.http.tools.plain import NoToolFormat
from pbkv_cluster.gateway.step.request import ChatPrompt


@dataclass(frozen=True, slots=True)
class ToolWriter:
    """Makes the prompt of a conversation in which tools are offered, called, and have answered."""

    form: ToolFormat
    knows_tools: bool  # the chat template prints tools, calls and results itself

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]], answer: str = "") -> ChatPrompt:
        """The prompt, with the beginning of the assistant's answer.

        Raises:
            InvalidArgument: there are tools, and the model calls none.
        """
        if self.knows_tools and not isinstance(self.form, NoToolFormat):
            return ChatPrompt(tuple(messages), tuple(tools), answer)
        written = [self._as_text(message) for message in messages]
        if tools:
            told = self.form.instructions(tools)
            if written and written[0].role == "system":
                written[0] = replace(written[0], content=f"{written[0].text}\n\n{told}")
            else:
                written.insert(0, ChatMessage("system", told))
        return ChatPrompt(tuple(written), answer=answer)

    def _as_text(self, message: ChatMessage) -> ChatMessage:
        """A message without calls and without the role of a tool, which not every template has."""
        if message.tool_calls:
            calls = "\n".join(self.form.call_text(call) for call in message.tool_calls)
            return ChatMessage(message.role, f"{message.text}\n{calls}" if message.text else calls, message.name)
        if message.role == "tool":
            return ChatMessage("user", f"<tool_response>\n{message.text}\n</tool_response>")
        return message
