"""Answers without tool calls."""

from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.tools.base import CallParser, Piece, ToolFormat


class NoToolFormat(ToolFormat):
    """The model calls no tools: whatever it writes is text, and tools are refused."""

    def parser(self, names: Collection[str]) -> CallParser:
        return PlainParser()

    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        raise InvalidArgument("tools", "this server's model calls no tools (model.tool_format is none)")

    def call_text(self, call: FunctionCall) -> str:
        raise InvalidArgument("messages", "this server's model calls no tools (model.tool_format is none)")

    def call_start(self, name: str) -> str:
        raise InvalidArgument("tool_choice", "this server's model calls no tools (model.tool_format is none)")


class PlainParser(CallParser):
    """Passes text on."""

    def push(self, text: str) -> list[Piece]:
        return [text] if text else []

    def finish(self) -> list[Piece]:
        return []
