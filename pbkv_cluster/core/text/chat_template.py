"""Renders a conversation with a model's chat template, and makes sure that nothing of it is lost.

Templates are programs that come with a model. Some know only content that is a string, some only lists of parts, and some drop
messages whose role they do not know; most say nothing when they meet what they do not know. So each rendered prompt is compared
with the conversation. For a model without a template, each message is written after its role.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall, parse_arguments

_FIELD = "prompt.messages"
_SHORT_CHARACTERS = 24  # a text below this length may be in a prompt by chance
_THINKING_ENDS = "</think>"
# Of a model without a template: each message after its role, as many base models have seen conversations written.
_PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_PART_KEYS = ("{'type': 'text'", '{"type": "text"', '{"type":"text"')  # of a list that was printed instead of read


class ChatTemplate:
    """One of the chat templates of a tokenizer."""

    def __init__(self, tokenizer: Any, name: str = "") -> None:
        """Args:
        tokenizer: one of `transformers`.
        name: of the template; empty: the tokenizer's default.

        Raises:
            StartupError: there is no template of that name, or it is not a template.
        """
        self._tokenizer = tokenizer
        self._source, self._missing = _choose(tokenizer.chat_template, name)
        if self._source is not None:
            self._check_syntax()

    @property
    def source(self) -> str:
        """The template itself; empty: the model has several and no default."""
        return self._source or ""

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it prints the tools of a conversation, the calls of them, and their results."""
        mark = f"Mark{_SHORT_CHARACTERS:08d}"
        tool = {
            "type": "function",
            "function": {"name": f"{mark}Tool", "description": mark, "parameters": {"type": "object", "properties": {}}},
        }
        conversation = (
            ChatMessage("user", f"{mark}Question"),
            # Some templates take only ids of nine letters and digits.
            ChatMessage("assistant", "", tool_calls=(FunctionCall(f"{mark}Call", "{}", "abcdefghi"),)),
            ChatMessage("tool", f"{mark}Result", name=f"{mark}Call", tool_call_id="abcdefghi"),
        )
        try:
            prompt = self.render(conversation, [tool])
        except InvalidArgument:
            return False
        return f"{mark}Tool" in prompt

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt, up to where the assistant's answer begins.

        Content is given to the template as strings, and as lists of parts if it takes only these.

        Args:
            messages: of the conversation.
            tools: that the assistant may call, as chat completion APIs write them: `{"type": "function", "function": ...}`.

        Raises:
            InvalidArgument: there is no template, or it refuses the messages, fails on them or loses a part of them.
        """
        if self._source is None:
            raise InvalidArgument(_FIELD, self._missing)
        try:
            return self._complete(messages, tools, as_parts=False)
        except InvalidArgument:
            try:
                return self._complete(messages, tools, as_parts=True)
            except InvalidArgument:
                pass
            raise

    def _complete(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], as_parts: bool) -> str:
        texts = [message.text for message in messages]
        prompt = self._apply(messages, texts, tools, as_parts)
        if as_parts and any(key in prompt and not any(key in text for text in texts) for key in _PART_KEYS):
            raise InvalidArgument(_FIELD, "the model's chat template prints lists of parts as they are")
        printed = _Printed(prompt)
        for position, message in enumerate(messages):
            if not printed.contains(_shown(message)):
                raise _lost(position, message)
            for call in message.tool_calls:
                if call.name not in prompt:
                    raise InvalidArgument(_FIELD, f"the model's chat template leaves out the tool calls of message {position}")
        self._check_short(messages, texts, tools, as_parts)
        return prompt

    def _check_short(
        self, messages: Sequence[ChatMessage], texts: Sequence[str], tools: Sequence[Mapping[str, Any]], as_parts: bool
    ) -> None:
        """Replaces short texts by longer ones that occur nowhere else, to see whether the template prints them."""
        marks = {
            position: f"Mark{position:08d}of{len(messages):08d}End"
            for position, message in enumerate(messages)
            if 0 < len(_shown(message)) < _SHORT_CHARACTERS and _THINKING_ENDS not in message.text
        }
        if not marks:
            return
        try:
            marked = [marks.get(position, text) for position, text in enumerate(texts)]
            prompt = self._apply(messages, marked, tools, as_parts)
        except InvalidArgument:
            return  # it looks into the texts: what can be said has been said
        for position, mark in marks.items():
            if mark not in prompt:
                raise _lost(position, messages[position])

    def _apply(
        self, messages: Sequence[ChatMessage], texts: Sequence[str], tools: Sequence[Mapping[str, Any]], as_parts: bool
    ) -> str:
        from jinja2 import TemplateError

        # Each time anew: templates may change what they are given.
        chat = [_fields(message, text, as_parts, at) for at, (message, text) in enumerate(zip(messages, texts, strict=True))]
        try:
            prompt: str = self._tokenizer.apply_chat_template(
                chat,
                tools=deepcopy(list(tools)) or None,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise InvalidArgument(_FIELD, f"the model's chat template refuses them: {error}") from error
        except Exception as error:  # a template can raise whatever a program can
            raise InvalidArgument(
                _FIELD, f"the model's chat template fails on them: {type(error).__name__}: {error}"
            ) from error
        return prompt

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=self._source, tokenize=False)
        except TemplateSyntaxError as error:
            raise StartupError(f"model.path: the chat template is malformed in line {error.lineno}: {error.message}") from error
        except Exception:  # noqa: BLE001, S110  # it refuses this conversation, which says nothing about others
            pass


def _choose(templates: str | Mapping[str, str] | None, name: str) -> tuple[str | None, str]:
    """The template, or None and why there is none."""
    named = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    if not all(isinstance(source, str) for source in named.values()):
        raise StartupError("model.path: the tokenizer's chat template is not a text")
    if name:
        if name not in named:
            raise StartupError(f"model.chat_template: the model has no template {name!r}; it has {_names(named)}")
        return named[name], ""
    if "default" in named:
        return named["default"] or _PLAIN, ""
    if len(named) == 1:
        return next(iter(named.values())), ""
    if named:
        return None, f"this model has several chat templates and no default; set model.chat_template to one of {_names(named)}"
    return _PLAIN, ""


def _names(named: Mapping[str, str]) -> str:
    return ", ".join(sorted(named)) or "none"


def _fields(message: ChatMessage, text: str, as_parts: bool, position: int) -> dict[str, Any]:
    """A message as templates expect it. Fields without a value are left out: many templates ask whether they are there."""
    parts = [message.text] if isinstance(message.content, str) else list(message.content)
    if text != message.text:
        parts = [text]
    fields: dict[str, Any] = {
        "role": message.role,
        "content": [{"type": "text", "text": part} for part in parts] if as_parts else text,
    }
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "type": "function",
                "id": call.call_id,
                "function": {"name": call.name, "arguments": parse_arguments(call, position)},
            }
            for call in message.tool_calls
        ]
    return fields


def _shown(message: ChatMessage) -> str:
    """What a prompt must contain of a message. What an assistant thought before it answered is left out on purpose."""
    text = message.text
    if message.role == "assistant":
        text = text.rpartition(_THINKING_ENDS)[2]
    return text.strip()


class _Printed:
    """A prompt that is searched for texts, most of which are there in order."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._at = 0  # end of the text found last

    def contains(self, text: str) -> bool:
        """Whether the prompt contains a text as it is, as a JSON string, or with other white space."""
        at = self._prompt.find(text, self._at)
        if at < 0:
            at = self._prompt.find(text)
        if at >= 0:
            self._at = at + len(text)
            return True
        return _dense(text) in self._dense or _dense(json.dumps(text, ensure_ascii=False)[1:-1]) in self._dense

    @cached_property
    def _dense(self) -> str:
        return _dense(self._prompt)


def _dense(text: str) -> str:
    return "".join(text.split())


def _lost(position: int, message: ChatMessage) -> InvalidArgument:
    return InvalidArgument(
        _FIELD, f"the model's chat template leaves out the text of message {position} (role {message.role[:64]!r})"
    )
