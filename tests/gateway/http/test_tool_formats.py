"""Tool calls in text: each format finds what it writes, however the text is cut, and loses nothing else."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.tools.base import Piece, ToolFormat
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.tools.formats import TOOL_FORMATS, tool_format

NAMES = ("search", "write_file")
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}} for name in NAMES
]
FORMATS = [name for name in TOOL_FORMATS.names() if name != "none"]
ARGUMENTS = st.dictionaries(st.text(max_size=8), st.text(max_size=12) | st.integers(-9, 9) | st.booleans(), max_size=3)


def parsed(form: ToolFormat, text: str, cuts: list[int]) -> list[Piece]:
    """What a parser makes of a text that comes in pieces; neighbouring texts are joined."""
    parser = form.parser(NAMES)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in parser.push(text[start:end])]
    found: list[Piece] = []
    for piece in [*pieces, *parser.finish()]:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return found


def plain(pieces: list[Piece]) -> list[Any]:
    return [piece if isinstance(piece, str) else (piece.name, json.loads(piece.arguments)) for piece in pieces]


@pytest.mark.parametrize("name", FORMATS)
@given(arguments=ARGUMENTS, cuts=st.lists(st.integers(0, 300), max_size=8))
def test_a_format_finds_what_it_writes(name: str, arguments: dict[str, Any], cuts: list[int]) -> None:
    form = tool_format(name, "")
    text = form.call_text(FunctionCall("search", json.dumps(arguments)))
    assert plain(parsed(form, text, cuts)) == [("search", arguments)]


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(alphabet='<tol_ca>/[]{}" \nTOOL', max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_text_that_holds_no_call_is_kept_as_it_is(name: str, text: str, cuts: list[int]) -> None:
    assert "".join(map(str, parsed(tool_format(name, ""), text, cuts))) == text


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
@example(cuts=[11])  # between a text and the blank after it
def test_hermes_finds_several_calls_and_the_text_around(cuts: list[int]) -> None:
    form = tool_format("hermes", "")
    calls = [FunctionCall("search", '{"q": 1}'), FunctionCall("write_file", '{"path": "<a>"}')]
    text = f"First this. {form.call_text(calls[0])}\n{form.call_text(calls[1])}\nThen I wait."
    assert plain(parsed(form, text, cuts)) == [
        "First this. ",
        ("search", {"q": 1}),
        ("write_file", {"path": "<a>"}),
        "\nThen I wait.",
    ]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("hermes", '<tool_call>{"name": "search", "arguments": {"q": 1}}', [("search", {"q": 1})]),
        ("hermes", "<tool_call>not json</tool_call>", ["<tool_call>not json</tool_call>"]),
        ("hermes", '<tool_call>{"name": "search", "arguments": "{\\"q\\": 1}"}</tool_call>', [("search", {"q": 1})]),
        ("llama3_json", '<|python_tag|>{"name": "search", "parameters": {"q": 1}}', [("search", {"q": 1})]),
        (
            "llama3_json",
            '{"name": "search", "parameters": {}}; {"name": "write_file", "parameters": {}}',
            [("search", {}), ("write_file", {})],
        ),
        ("llama3_json", '{"name": "Anna", "parameters": {}}', ['{"name": "Anna", "parameters": {}}']),
        ("llama3_json", '{"answer": 42}', ['{"answer": 42}']),
        ("mistral", '[{"name": "search", "arguments": {"q": 1}}]', [("search", {"q": 1})]),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "search", "arguments": {}}, {"name": "write_file", "arguments": {}}]',
            [("search", {}), ("write_file", {})],
        ),
        ("mistral", "[1, 2, 3]", ["[1, 2, 3]"]),
        ("none", '<tool_call>{"name": "search"}</tool_call>', ['<tool_call>{"name": "search"}</tool_call>']),
    ],
)
def test_what_models_write(name: str, text: str, found: list[Any]) -> None:
    assert plain(parsed(tool_format(name, ""), text, [])) == found


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("... <tool_call> ...", "hermes"),
        ("... [TOOL_CALLS] ...", "mistral"),
        ("... ipython ...", "llama3_json"),
        ("{{ m.content }}", "hermes"),
    ],
)
def test_auto_is_the_format_that_the_template_shows(template: str, name: str) -> None:
    assert type(tool_format("auto", template)) is type(tool_format(name, ""))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"model\.tool_format: 'xml' is unknown; choose one of hermes, "):
        tool_format("xml", "")


def test_ids_of_mistral_have_nine_letters_and_digits() -> None:
    (call,) = parsed(tool_format("mistral", ""), '[TOOL_CALLS][{"name": "search", "arguments": {}}]', [])
    assert isinstance(call, FunctionCall)
    assert len(call.call_id) == 9
    assert call.call_id.isalnum()


CONVERSATION = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "What do whales do?"),
    ChatMessage("assistant", "Let me see.", tool_calls=(FunctionCall("search", '{"q": "whales"}', "id1"),)),
    ChatMessage("tool", "They sing.", tool_call_id="id1"),
)


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_without_tools_gets_them_as_text(name: str) -> None:
    writer = ToolWriter(tool_format(name, ""), knows_tools=False)
    prompt = writer.prompt(CONVERSATION, TOOLS)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    told, _, called, answered = prompt.messages
    assert told.text.startswith("Be brief.\n\n")
    assert all(tool in told.text for tool in NAMES)
    assert plain(parsed(writer.form, called.text.removeprefix("Let me see.\n"), [])) == [("search", {"q": "whales"})]
    assert "They sing." in answered.text
    assert prompt.tools == ()
    assert writer.prompt(CONVERSATION[1:2], TOOLS).messages[0].role == "system"


def test_a_template_with_tools_gets_them_as_they_are() -> None:
    prompt = ToolWriter(tool_format("hermes", ""), knows_tools=True).prompt(CONVERSATION, TOOLS)
    assert prompt.messages == CONVERSATION
    assert list(prompt.tools) == TOOLS


def test_a_model_that_calls_no_tools_refuses_them() -> None:
    writer = ToolWriter(tool_format("none", ""), knows_tools=True)
    assert writer.prompt(CONVERSATION[:2], ()).messages == CONVERSATION[:2]
    with pytest.raises(InvalidArgument, match="calls no tools"):
        writer.prompt(CONVERSATION[:2], TOOLS)
