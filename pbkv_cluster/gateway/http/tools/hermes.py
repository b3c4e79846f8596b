"""Calls between tags, anywhere in the text: the format of Hermes and Qwen."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.tools.base import CallParser, Piece, ToolFormat, overlap

_OPENS, _CLOSES = "<tool_call>", "</tool_call>"


class HermesFormat(ToolFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of times, with text around."""

    def parser(self, names: Collection[str]) -> CallParser:
        return _TagParser(self)

    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return (
            "You may call functions. These are their signatures:\n"
            f"<tools>\n{listed}\n</tools>\n"
            "To call one, write a JSON object with its name and arguments between tags:\n"
            f'{_OPENS}\n{{"name": "function_name", "arguments": {{"argument": "value"}}}}\n{_CLOSES}'
        )

    def call_text(self, call: FunctionCall) -> str:
        return f'{_OPENS}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}\n{_CLOSES}'

    def call_start(self, name: str) -> str:
        begins = f'{_OPENS}\n{{"name": "'
        return f'{_OPENS}\n{{"name": {json.dumps(name)}, "arguments":' if name else begins


class _TagParser(CallParser):
    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        self._inside = False  # between the tags
        self._called = False  # a call was found
        self._in_text = False  # text was the latest that was found: blanks after it belong to it, however the text was cut

    def push(self, text: str) -> list[Piece]:
        self._held += text
        found: list[Piece] = []
        while True:
            tag = _CLOSES if self._inside else _OPENS
            at = self._held.find(tag)
            if at < 0:
                break
            part, self._held = self._held[:at], self._held[at + len(tag) :]
            if self._inside:
                found.append(self._form.call(part) or f"{_OPENS}{part}{_CLOSES}")
                self._called, self._in_text = True, False
            elif part.strip() or (part and self._in_text):
                found.append(part)
            self._inside = not self._inside
        if not self._inside:
            sure = len(self._held) - overlap(self._held, _OPENS)
            # Blank text may be what stands between two calls.
            if self._held[:sure].strip() or (sure and self._in_text):
                found.append(self._held[:sure])
                self._held = self._held[sure:]
                self._in_text = True
        return found

    def finish(self) -> list[Piece]:
        rest, self._held = self._held, ""
        if self._inside:  # the closing tag may have been cut off
            return [self._form.call(rest) or _OPENS + rest]
        return [rest] if rest.strip() or (rest and (self._in_text or not self._called)) else []
