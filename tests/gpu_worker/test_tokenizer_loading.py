"""Loading tokenizers, and what they say of their special tokens."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.text.codec import TextCodec


def write(text: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def without_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"], tokenizer["model"]["merges"] = {}, []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def broken_configuration(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": 3}}')


def malformed_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(write("{"), id="half a file"),
        pytest.param(write(""), id="empty"),
        pytest.param(write("{}"), id="no fields"),
        pytest.param(write('{"version": "1.0", "model": {"type": "BPE", "vocab": 3}}'), id="no tokenizer"),
        pytest.param(write("[]"), id="a list"),
        pytest.param(write(b"\xff\xfe\x00"), id="no text"),
        without_vocabulary,
        broken_configuration,
        malformed_template,
    ],
)
def test_a_malformed_tokenizer_is_told_at_start(
    model_dirs: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for file in model_dirs["llama"].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    spoil(tmp_path)
    with pytest.raises(StartupError) as caught:
        TextCodec.load(str(tmp_path))
    assert str(caught.value).startswith("model.path: ")
    assert "NoneType" not in str(caught.value)


def test_special_tokens_are_what_decoding_leaves_out(model_dirs: dict[str, Path]) -> None:
    codec = TextCodec.load(str(model_dirs["llama"]))
    assert set(codec.special_tokens.values()) == {"<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"}
    assert all(codec.decode([token]) == "" for token in codec.special_tokens)


ENCODE = """
import sys
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.tokenizers_only import use_tokenizers_only

if sys.argv[1] == "tokenizers only":
    use_tokenizers_only()
for path in sys.argv[2:]:
    codec = TextCodec.load(path)
    packed = codec.encode("Hello there"), codec.encode_chat([ChatMessage("user", "Hello")])
    print([each.hex() for each in packed], codec.vocab_size, dict(codec.special_tokens))
print("torch" in sys.modules)
"""


def test_without_torch_a_tokenizer_is_the_same(model_dirs: dict[str, Path]) -> None:
    def encode(how: str) -> list[str]:
        command = [sys.executable, "-c", ENCODE, how, *map(str, model_dirs.values())]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    *expected, with_torch = encode("whole")
    *found, without = encode("tokenizers only")
    assert found == expected
    assert (with_torch, without) == ("True", "False")
