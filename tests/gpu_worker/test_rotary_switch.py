"""Rotary factors that switch with a sequence's length: each sequence has its own, and KV of the two kinds never meets."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.request import TokenPrompt
from pbkv_cluster.gpu_worker.model import loading
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.rotary import RotarySwitch, find_rotary_switch
from tests.gpu_worker.engine_harness import make_engine, reference, request, run
from tests.gpu_worker.model_families import SWITCH, build

CPU = torch.device("cpu")
PROMPT = [3 + (7 * n * n + n) % 90 for n in range(SWITCH + 40)]


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phi3")
    build("phi3 with longrope", path)
    return path


@pytest.fixture(scope="module")
def model(phi3: Path) -> LoadedModel:
    return load_model(ModelConfig(path=str(phi3), dtype="float64"), CPU)


@pytest.mark.parametrize("late", [None, 1])
def test_outputs_are_those_of_generate_whatever_else_runs(model: LoadedModel, late: int | None) -> None:
    lengths = [5, SWITCH - 20, *range(SWITCH - 3, SWITCH + 3), SWITCH + 20]
    engine = make_engine(
        model, late=late, gpu_blocks=13, host_blocks=16, prefill_chunk_tokens=20, max_batch_tokens=48, max_running=5
    )
    prompts = {str(n): [3 + n % 90, *PROMPT[1:n]] for n in lengths}
    expected = {name: reference(model, prompt, 36) for name, prompt in prompts.items()}
    for _ in range(2):
        results = run(engine, *(request(model, name, prompt, f"w{name}", max_tokens=36) for name, prompt in prompts.items()))
        assert {name: result.tokens for name, result in results.items()} == expected
    assert engine.scheduler.decisions["rotary_switch"] == 2 * sum(n <= SWITCH < n + 35 for n in lengths)
    assert engine.scheduler.decisions["preempt"] > 0


def test_no_kv_of_a_short_sequence_is_found_by_a_long_one(model: LoadedModel) -> None:
    engine = make_engine(model)

    def cached_tokens(length: int, sent: int = 0) -> int:
        step = request(model, "a", PROMPT[:length], max_tokens=1 + sent, sent=PROMPT[length : length + sent])
        usage = run(engine, step)["a"].usage
        assert usage is not None
        return usage.delivered.get(Tier.GPU, 0)

    assert [cached_tokens(SWITCH) for _ in range(2)] == [0, SWITCH - 16]
    assert [cached_tokens(SWITCH + 1) for _ in range(2)] == [0, SWITCH]
    assert cached_tokens(SWITCH - 20) == SWITCH - 32
    assert cached_tokens(SWITCH - 2, sent=3) == SWITCH - 2  # a lost worker's output counts towards the length
    assert cached_tokens(SWITCH - 2, sent=2) == SWITCH - 16


def test_a_sequence_that_passes_the_switch_leaves_kv_for_the_next_step(model: LoadedModel) -> None:
    engine = make_engine(model)
    prompt = PROMPT[: SWITCH - 3]
    output = run(engine, request(model, "a", prompt, max_tokens=24))["a"].tokens
    longer = [*prompt, *output, 5, 7, 9]
    result = run(engine, request(model, "b", longer, step=1))["b"]
    assert result.usage is not None
    assert result.usage.delivered == {Tier.GPU: 80}  # of 84 tokens with KV, whole blocks
    assert result.tokens == reference(model, longer, 8)
    again = run(engine, request(model, "c", prompt, step=2, max_tokens=2))["c"]
    assert again.usage is not None
    assert again.usage.delivered == {Tier.GPU: 48}
    assert again.tokens == output[:2]


@pytest.mark.parametrize("tokens", [SWITCH - 20, SWITCH - 3, SWITCH + 1])
def test_the_gateway_names_the_blocks_as_the_worker_does(model: LoadedModel, phi3: Path, tokens: int) -> None:
    engine = make_engine(model)
    output = run(engine, request(model, "a", PROMPT[:tokens], max_tokens=20))["a"].tokens
    reader = PromptReader(None, ThreadPoolExecutor(1))  # type: ignore[arg-type]  # tokens need no codec
    limits = ModelLimits([model.namespace()], model.vocabulary, model.max_context)
    prompt = asyncio.run(reader.read(TokenPrompt(pack(PROMPT[:tokens])), limits, ""))
    assert set(prompt.keys.of_all(model.namespace(), pack(output))) == set(engine.cache.tiers.residency())


def test_namespaces_without_a_switch_are_the_same_for_all_lengths(phi3: Path) -> None:
    short = load_model(ModelConfig(path=str(phi3), max_context_tokens=SWITCH), CPU).namespace()
    assert short.of_length(10_000) == short


class Never(RotarySwitch):
    """Gives every sequence the factors of short ones."""

    def chosen(self, is_long: Any) -> Any:
        return super().chosen(is_long & False)


class Batch(RotarySwitch):
    """Gives a batch in which one sequence is long the factors of long ones."""

    def chosen(self, is_long: Any) -> Any:
        return super().chosen(is_long | is_long.any())


@pytest.mark.parametrize(
    ("kind", "switch", "why"),
    [
        (Never, SWITCH, "a prompt of 96 tokens differ"),
        (Batch, SWITCH, "rotary factors follow the largest position"),
        (RotarySwitch, SWITCH + 1, "rotary factors follow the largest position"),
        (RotarySwitch, SWITCH - 1, "in chunks differ"),
        (None, 0, "rotary factors follow the largest position"),
    ],
)
def test_a_wrong_choice_of_factors_is_found(
    kind: type[RotarySwitch] | None, switch: int, why: str, phi3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(module: Any, max_context: int) -> RotarySwitch | None:
        parts = [part for part in module.modules() if getattr(part, "rope_type", None) == "longrope"]
        return kind(switch, parts) if kind else None

    monkeypatch.setattr(loading, "find_rotary_switch", found)
    for dtype in ("float64", "bfloat16"):
        with pytest.raises(StartupError, match=rf"^model\.path: .*{why}"):
            load_model(ModelConfig(path=str(phi3), dtype=dtype), CPU)


def test_only_switches_within_the_context_are_looked_at(model: LoadedModel) -> None:
    assert find_rotary_switch(model.module, SWITCH) is None
