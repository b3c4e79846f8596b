"""Answers that are tool calls as a whole, which their beginning shows: the formats of Llama 3 and Mistral."""

import json
import secrets
import string
from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.tools.base import CallParser, Piece, ToolFormat, overlap

_LLAMA_TAG = "<|python_tag|>"
_MISTRAL_TAG = "[TOOL_CALLS]"
_MISTRAL_ID = string.ascii_letters + string.digits
_MISTRAL_ID_LENGTH = 9  # its chat templates refuse others


class Llama3Format(ToolFormat):
    """`{"name": …, "parameters": {…}}`, several with semicolons or line breaks between."""

    def parser(self, names: Collection[str]) -> CallParser:
        return _WholeAnswerParser(self, names, _LLAMA_TAG, "{")

    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        listed = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
        return (
            "You may call functions. To call one, answer with nothing but a JSON object like "
            '{"name": "function_name", "parameters": {"parameter": "value"}}. These are the functions:\n\n' + listed
        )

    def call_text(self, call: FunctionCall) -> str:
        return f'{{"name": {json.dumps(call.name)}, "parameters": {call.arguments or "{}"}}}'

    def call_start(self, name: str) -> str:
        return f'{{"name": {json.dumps(name)}, "parameters":' if name else '{"name": "'


class MistralFormat(ToolFormat):
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`; the tag may be a special token, which is no part of the text."""

    def parser(self, names: Collection[str]) -> CallParser:
        return _WholeAnswerParser(self, names, _MISTRAL_TAG, "[")

    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        return (
            f"[AVAILABLE_TOOLS] {json.dumps(list(tools), ensure_ascii=False)}[/AVAILABLE_TOOLS]\n"
            f'To call tools, answer with {_MISTRAL_TAG} [{{"name": "function_name", "arguments": {{"argument": "value"}}}}].'
        )

    def call_text(self, call: FunctionCall) -> str:
        return f'{_MISTRAL_TAG} [{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}]'

    def call_start(self, name: str) -> str:
        begins = f'{_MISTRAL_TAG} [{{"name": "'
        return f'{_MISTRAL_TAG} [{{"name": {json.dumps(name)}, "arguments":' if name else begins

    def new_call_id(self) -> str:
        return "".join(secrets.choice(_MISTRAL_ID) for _ in range(_MISTRAL_ID_LENGTH))


class _WholeAnswerParser(CallParser):
    """Holds an answer back that begins like calls, until it is whole; any other passes through."""

    def __init__(self, form: ToolFormat, names: Collection[str], tag: str, bracket: str) -> None:
        """Args:
        form: makes the calls.
        names: of the tools; JSON that names another is an answer.
        tag: that may stand before the calls.
        bracket: that the calls begin with.
        """
        self._form = form
        self._names = names
        self._tag = tag
        self._bracket = bracket
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> list[Piece]:
        if self._is_text:
            return [text] if text else []
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun.startswith((self._tag, self._bracket)) or overlap(begun, self._tag) == len(begun):
            return []
        self._is_text = True
        held, self._held = self._held, ""
        return [held]

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if not held:
            return []
        calls = self._calls(held.strip().removeprefix(self._tag))
        return [*calls] if calls else [held]

    def _calls(self, text: str) -> list[FunctionCall]:
        """All calls of a text that is nothing but calls; otherwise none."""
        decoder = json.JSONDecoder()
        calls: list[FunctionCall] = []
        at = 0
        while at < len(text):
            if text[at] in " \n\t\r;":
                at += 1
                continue
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return []
            for each in value if isinstance(value, list) else [value]:
                call = self._form.call_of(each)
                if call is None or call.name not in self._names:
                    return []
                calls.append(call)
        return calls
