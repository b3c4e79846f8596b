"""`pbkv submit` against a recording gateway."""

import io
import json
from pathlib import Path

import pytest

from pbkv_cluster.cli.serving.submit import describe_ending
from pbkv_cluster.client import Finished, FinishReason
from pbkv_cluster.core.errors import FailedPrecondition, ResourceExhausted
from pbkv_cluster.core.usage import Usage
from tests.cli.conftest import Pbkv
from tests.simulator.recording_gateway import Call, RecordingGateway


def test_streams_the_text_and_ends_its_own_workflow(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str) -> None:
    done = pbkv("submit", "Say hello", "--endpoint", endpoint, "--agent", "writer")
    assert (done.code, done.out) == (0, "Hello, world\n")
    assert done.err == "pbkv: the answer ended because the limit of tokens was reached; --max-tokens sets it\n"
    ((name, (request,)),) = gateway.steps.items()
    assert request.prompt.text == "Say hello"
    assert not request.sampling.HasField("max_tokens")
    assert gateway.calls[name] == [Call("start"), Call("step", "writer"), Call("end")]


def test_the_result_is_json_on_standard_output_and_the_text_then_elsewhere(pbkv: Pbkv, endpoint: str, tmp_path: Path) -> None:
    done = pbkv("submit", "Say hello", "--endpoint", endpoint, "--json", "-")
    found = json.loads(done.out)
    assert done.err.startswith("Hello, world\n")
    assert (found["text"], found["finish_reason"]) == ("Hello, world", "length")
    assert found["usage"].keys() >= {"prompt_tokens", "available_tokens", "captured", "delivered", "ttft_s"}
    beside = pbkv("submit", "Say hello", "--endpoint", endpoint, "--json", str(tmp_path / "result.json"))
    assert beside.out == "Hello, world\n"
    assert json.loads((tmp_path / "result.json").read_text()).keys() == found.keys()


def test_leaves_a_named_workflow_open(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str) -> None:
    for _ in range(2):
        assert pbkv("submit", "x", "--endpoint", endpoint, "--workflow", "mine").code == 0
    assert [call.kind for call in gateway.calls["mine"]] == ["start", "step", "start", "step"]


def test_passes_sampling_on(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str) -> None:
    options = ["--max-tokens", "7", "--temperature", "0.5", "--top-p", "0.25", "--seed", "9", "--stop", "a", "--stop", "b"]
    assert pbkv("submit", "x", "--endpoint", endpoint, *options).code == 0
    ((request,),) = gateway.steps.values()
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (7, 0.5, 0.25, 9)
    assert list(sampling.stop) == ["a", "b"]


@pytest.mark.parametrize("args", [[], ["-"]])
def test_reads_the_prompt_from_standard_input(
    pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert pbkv("submit", *args, "--endpoint", endpoint).code == 0
    ((request,),) = gateway.steps.values()
    assert request.prompt.text == "from a pipe\n"


def test_reads_messages(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}]
    file.write_text(json.dumps(chat))
    assert pbkv("submit", "--messages", str(file), "--endpoint", endpoint).code == 0
    ((request,),) = gateway.steps.values()
    assert [{"role": each.role, "content": each.content} for each in request.prompt.messages.messages] == chat


def test_a_prompt_can_be_a_user_s_message(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str) -> None:
    assert pbkv("submit", "--chat", "Say hello", "--endpoint", endpoint).code == 0
    ((request,),) = gateway.steps.values()
    (message,) = request.prompt.messages.messages
    assert (message.role, message.content) == ("user", "Say hello")


def test_messages_may_have_parts_and_tools(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "search"},
    ]
    file.write_text(json.dumps(chat))
    assert pbkv("submit", "--messages", str(file), "--endpoint", endpoint).code == 0
    ((request,),) = gateway.steps.values()
    user, assistant, tool = request.prompt.messages.messages
    assert [part.text for part in user.parts] == ["a", "b"]
    assert [(each.id, each.name, each.arguments) for each in assistant.tool_calls] == [("c1", "search", "{}")]
    assert (tool.content, tool.tool_call_id, tool.name) == ("x", "c1", "search")


@pytest.mark.parametrize(
    ("reason", "printed", "plain", "said"),
    [
        (FinishReason.STOP, True, True, ""),
        (FinishReason.LENGTH, True, True, "the answer ended because the limit of tokens was reached; --max-tokens sets it"),
        (FinishReason.CANCELLED, True, False, "the answer ended because the step was cancelled"),
        (
            FinishReason.STOP,
            False,
            True,
            "the answer is empty: the model wrote its end-of-sequence token, or a --stop string, after 1 tokens; "
            "an instruct model expects its chat template: --chat",
        ),
        (
            FinishReason.STOP,
            False,
            False,
            "the answer is empty: the model wrote its end-of-sequence token, or a --stop string, after 1 tokens",
        ),
    ],
)
def test_why_a_step_ended(reason: FinishReason, printed: bool, plain: bool, said: str) -> None:
    assert describe_ending(Finished(reason, Usage(generated_tokens=1)), printed, plain) == said


def test_prints_usage_with_denominators(pbkv: Pbkv, endpoint: str) -> None:
    done = pbkv("submit", "x", "--endpoint", endpoint, "--usage")
    assert done.out == "Hello, world\n"
    assert "prompt     0 tokens" in done.err
    assert "available  none yet" in done.err
    assert "0.250 s to the first token" in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "must hold a list of messages that is not empty"),
        (b'{"role": "user"}', "must hold a list of messages"),
        (b'[{"role": "user"}]', "message 0 must have a role and a content"),
        (
            b'[{"role": "user", "content": "x"}, {"role": "user", "content": 5}]',
            "message 1: content must be a string or a list of parts, got 5",
        ),
    ],
)
def test_bad_messages_are_one_clear_line(pbkv: Pbkv, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "chat.json"
    if content is not None:
        file.write_bytes(content)
    done = pbkv("submit", "--messages", str(file))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("pbkv: --messages: ")
    assert message in done.err


def test_refuses_two_prompts_and_none(pbkv: Pbkv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "user", "content": "x"}]')
    assert "--chat: cannot be combined with --messages" in pbkv("submit", "--chat", "--messages", str(chat)).err
    assert "--messages: cannot be combined with a prompt" in pbkv("submit", "x", "--messages", str(tmp_path)).err
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    done = pbkv("submit")
    assert (done.code, done.err.startswith("pbkv: PROMPT: is missing")) == (2, True)


@pytest.mark.parametrize(
    ("error", "code"), [(ResourceExhausted("the queue is full"), 1), (FailedPrecondition("not set up"), 1)]
)
def test_a_refusal_by_the_server_is_one_clear_line(
    pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, error: ResourceExhausted, code: int
) -> None:
    gateway.failures["mine", "0"] = error
    done = pbkv("submit", "x", "--endpoint", endpoint, "--workflow", "mine")
    assert (done.code, done.err) == (code, f"pbkv: {error}\n")


def test_a_value_that_cannot_be_sent_is_bad_input(pbkv: Pbkv, endpoint: str) -> None:
    done = pbkv("submit", "x", "--endpoint", endpoint, "--seed", "-1")
    assert done.code == 2
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", [["submit", "x"], ["status"]])
def test_an_absent_gateway_is_one_clear_line(pbkv: Pbkv, command: list[str]) -> None:
    done = pbkv(*command, "--endpoint", "127.0.0.1:1")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("pbkv: ")
