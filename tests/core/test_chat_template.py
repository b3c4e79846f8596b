"""Chat templates: which one is chosen, in what form they get content, and that nothing of a conversation is lost."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.core.text.chat_template import ChatTemplate

STRINGS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LISTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}<assistant>"
)
USERS = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}"
TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls %}"
    "<call {{ call.id }}>{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "{% if m.tool_call_id is defined %}<for {{ m.tool_call_id }}>{% endif %}"
    "{% if m.name is defined %}<by {{ m.name }}>{% endif %}"
    "{% endfor %}"
)
USER = ChatMessage("user", "Why is the sky blue?")


def template(source: Any, name: str = "") -> ChatTemplate:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # type: ignore[no-untyped-call]
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer, name)


def refusal(source: Any, *messages: ChatMessage) -> str:
    with pytest.raises(InvalidArgument) as caught:
        template(source).render(messages)
    assert caught.value.field == "prompt.messages"
    return caught.value.problem


@pytest.mark.parametrize(
    ("source", "name", "prompt"),
    [
        pytest.param(STRINGS, "", "<user>Why is the sky blue?<assistant>", id="the only one"),
        pytest.param({"default": STRINGS, "rag": USERS}, "", "<user>Why is the sky blue?<assistant>", id="the default"),
        pytest.param({"default": STRINGS, "rag": USERS}, "rag", "<user>Why is the sky blue?", id="by name"),
        pytest.param({"rag": USERS}, "", "<user>Why is the sky blue?", id="one with a name"),
    ],
)
def test_the_chosen_template(source: Any, name: str, prompt: str) -> None:
    assert template(source, name).render([USER]) == prompt


def test_several_templates_without_a_default_need_a_name() -> None:
    named = {"tool_use": STRINGS, "rag": USERS}
    problem = "this model has several chat templates and no default; set model.chat_template to one of rag, tool_use"
    assert refusal(named, USER) == problem
    assert template(named, "tool_use").render([USER]) == "<user>Why is the sky blue?<assistant>"
    with pytest.raises(StartupError, match=r"model\.chat_template: the model has no template 'tools'; it has rag, tool_use"):
        template(named, "tools")


@pytest.mark.parametrize("source", [None, "", {}])
def test_a_model_without_a_template_gets_each_message_after_its_role(source: Any) -> None:
    conversation = (ChatMessage("system", "Be brief."), USER)
    assert template(source).render(conversation) == "System: Be brief.\n\nUser: Why is the sky blue?\n\nAssistant:"
    assert not template(source).knows_tools


TOOL = {"type": "function", "function": {"name": "search", "description": "", "parameters": {}}}
WITH_TOOLS = (
    "{% for tool in tools or [] %}<tool>{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}{% endfor %}{% endfor %}"
)


def test_tools_are_given_to_a_template_that_knows_them() -> None:
    assert template(WITH_TOOLS).knows_tools
    assert template(WITH_TOOLS).render([USER], [TOOL]) == "<tool>search<user>Why is the sky blue?"
    assert not template(TOOLS).knows_tools, "it prints calls, but no tools"
    assert not template(STRINGS).knows_tools


@pytest.mark.parametrize("source", ["{% for m in messages %}", "{{ messages", "{% nonsense %}"])
def test_a_malformed_template_is_told_at_start(source: str) -> None:
    with pytest.raises(StartupError, match=r"model\.path: the chat template is malformed in line 1"):
        template(source)


def test_a_template_that_takes_only_lists_gets_lists() -> None:
    chat = [ChatMessage("system", "Be brief."), ChatMessage("user", ("Look at this. ", "What is it?"))]
    assert template(LISTS).render(chat) == "<system>Be brief.<user>Look at this. What is it?<assistant>"


def test_a_template_that_takes_strings_gets_parts_joined() -> None:
    chat = [ChatMessage("user", ("Look at this.", "What is it?"))]
    assert template(STRINGS).render(chat) == "<user>Look at this.\nWhat is it?<assistant>"


@pytest.mark.parametrize("text", ["You must answer in French, whatever the language of the question.", "s", "user", "."])
def test_a_message_that_a_template_drops_is_refused(text: str) -> None:
    problem = refusal(USERS, ChatMessage("system", text), USER)
    assert problem == "the model's chat template leaves out the text of message 0 (role 'system')"


def test_a_list_that_would_be_printed_as_it_is_is_refused() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    assert "leaves out the text of message 0" in refusal(source, USER)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the model's chat template refuses them: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "the model's chat template fails on them: TypeError: "),
        ("{{ 1 // (messages | length - 1) }}", "the model's chat template fails on them: ZeroDivisionError: "),
        ("{{ messages[5].content }}", "the model's chat template refuses them: "),
        ("{{ messages.clear() }}", "the model's chat template refuses them: "),
    ],
)
def test_a_template_that_fails_names_the_messages(source: str, problem: str) -> None:
    assert refusal(source, USER).startswith(problem)


def test_tool_calls_and_their_results_reach_the_template() -> None:
    chat = [
        USER,
        ChatMessage("assistant", "", tool_calls=(FunctionCall("search", '{"query": "sky"}', "c1"), FunctionCall("now", ""))),
        ChatMessage("tool", "Rayleigh", name="search", tool_call_id="c1"),
    ]
    assert template(TOOLS).render(chat) == (
        '<user>Why is the sky blue?<assistant><call c1>search({"query": "sky"})<call >now({})<tool>Rayleigh<for c1><by search>'
    )
    assert refusal(STRINGS, *chat) == "the model's chat template leaves out the tool calls of message 1"


def test_what_an_assistant_thought_may_be_left_out_and_nothing_else() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    thought = ChatMessage("assistant", "<think>Hm, light is scattered.</think>\n\nBecause of Rayleigh scattering, mostly.")
    assert template(source).render([USER, thought]).endswith("<assistant>\n\nBecause of Rayleigh scattering, mostly.")
    assert "message 0" in refusal(source, ChatMessage("user", "What does the tag <think>x</think> in a model's output mean?"))


def test_a_text_may_be_printed_as_json() -> None:
    source = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert template(source).render([ChatMessage("tool", 'line one\nline "two", é')]) == r'"line one\nline \"two\", é"'


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=4))
@pytest.mark.parametrize("source", [STRINGS, LISTS])
def test_every_text_is_in_the_prompt(source: str, texts: list[str]) -> None:
    prompt = template(source).render([ChatMessage("user", text) for text in texts])
    assert all(text.strip() in prompt for text in texts)


def test_messages_of_chat_completion_apis_are_read() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": {"query": "sky"}}}
    read = ChatMessage.from_mapping
    assert read({"role": "user", "content": "hi"}) == ChatMessage("user", "hi")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read({"role": "user", "content": parts}) == ChatMessage("user", ("a", "b"))
    calls = (FunctionCall("search", '{"query": "sky"}', "c1"),)
    assert read({"role": "assistant", "content": None, "tool_calls": [call]}) == ChatMessage("assistant", "", tool_calls=calls)
    result = {"role": "tool", "content": "Rayleigh", "tool_call_id": "c1", "name": "search"}
    assert read(result) == ChatMessage("tool", "Rayleigh", "search", "c1")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user"}, "message 7 must have a role and a content"),
        ({"role": "user", "content": 3}, "message 7: content must be a string or a list of parts, got 3"),
        ({"role": 3, "content": "x"}, "message 7: role must be a string, got 3"),
        (
            {"role": "user", "content": "x", "contents": "y"},
            "message 7 has an unknown field 'contents'; known are role,",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "message 7, part 0: only parts of type text are supported, got 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "message 7, part 0 has no text"),
        ({"role": "user", "content": [3]}, "message 7, part 0 must be"),
        ({"role": "tool", "content": "x", "tool_call_id": 3}, "message 7: tool_call_id must be a string, got 3"),
        ({"role": "assistant", "tool_calls": {"id": "c"}}, "message 7: tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "message 7, tool call 0 must have a function"),
    ],
)
def test_a_message_with_a_wrong_field_is_refused_by_name(message: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ChatMessage.from_mapping(message, 7)
    assert caught.value.field == "prompt.messages"
    assert caught.value.problem.startswith(problem)
