"""The projected hidden state of a step equals that of plain `transformers` at the prompt's last token."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION
from pbkv_cluster.gpu_worker.model import torch_runner as runner_module
from pbkv_cluster.gpu_worker.model.hidden_state import HiddenProjection, captured
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import Result, collect, make_engine, request, run
from tests.gpu_worker.worker_rig import config, serving, step

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
SIZE = 64  # of the small models' hidden states
CPU = torch.device("cpu")


def prompt(tokens: int, seed: int = 1) -> list[int]:
    """A prompt whose first block differs from that of any other seed."""
    return [(seed * 131 + n * 17) % 4000 + 50 for n in range(tokens)]


def plain(model: LoadedModel, ids: list[int], dims: int = 64) -> npt.NDArray[np.float64]:
    """The reference: hidden states from `transformers`, projected with NumPy."""
    model.module.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    finally:
        model.module.set_attn_implementation(IMPLEMENTATION)
    matrix = np.random.RandomState(0x9BCF + SIZE).standard_normal((dims, SIZE))
    projected: npt.NDArray[np.float64] = matrix @ states[0, -1].double().numpy()
    scaled: npt.NDArray[np.float64] = projected / np.sqrt(np.mean(projected**2))
    return scaled


def values(hidden: bytes) -> npt.NDArray[np.float64]:
    return np.frombuffer(hidden, "<f2").astype(np.float64)


def assert_plain(model: LoadedModel, ids: list[int], hidden: bytes) -> None:
    assert len(hidden) == 128
    np.testing.assert_allclose(values(hidden), plain(model, ids), rtol=2e-3, atol=2e-3)


async def test_a_worker_sends_it_with_the_end_of_a_step(model_dirs: dict[str, Path], models: dict[str, LoadedModel]) -> None:
    async with serving(config(model_dirs["llama"])) as rig:
        first = await rig.run(step(prompt(40)))
        assert_plain(models["llama"], prompt(40), first.hidden)
        again = await rig.run(step(prompt(40), agent_id="b"))
        assert again.delivered == 32
        np.testing.assert_allclose(values(again.hidden), values(first.hidden), atol=2e-3)
        other = await rig.run(step(prompt(40, seed=2)))
        assert np.abs(values(other.hidden) - values(first.hidden)).max() > 0.1


@pytest.mark.parametrize(("dims", "size"), [(0, 0), (1, 2), (100, 200)])
async def test_its_size_is_as_configured(model_dirs: dict[str, Path], dims: int, size: int) -> None:
    async with serving(config(model_dirs["llama"], engine={"hidden_dims": dims})) as rig:
        assert len((await rig.run(step(prompt(20)))).hidden) == size


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_a_batch_has_its_own(family: str, models: dict[str, LoadedModel]) -> None:
    model = models[family]
    given = [prompt(length, seed) for seed, length in enumerate((1, 16, 33, 100, 5))]
    engine = make_engine(model, prefill_chunk_tokens=32, max_batch_tokens=48)
    results = run(engine, *(request(model, str(n), ids) for n, ids in enumerate(given)))
    for number, ids in enumerate(given):
        assert_plain(model, ids, results[str(number)].hidden)


def test_output_does_not_change_it(models: dict[str, LoadedModel]) -> None:
    """It is the state at the prompt's end, even if the output of a lost worker is computed after the prompt."""
    model = models["llama"]
    engine = make_engine(model, prefill_chunk_tokens=16)
    for number, sent in enumerate(([], [7], list(range(100, 130)))):
        engine.cache.clear()
        result = run(engine, request(model, str(number), prompt(37), max_tokens=40, sent=sent))[str(number)]
        assert_plain(model, prompt(37), result.hidden)


def test_it_is_unknown_if_the_prompt_is_not_computed(models: dict[str, LoadedModel]) -> None:
    model = models["llama"]
    engine = make_engine(model)
    tokens = run(engine, request(model, "first", prompt(32), max_tokens=24))["first"].tokens
    result = run(engine, request(model, "resumed", prompt(32), max_tokens=24, sent=tokens[:20]))["resumed"]
    assert result.usage is not None
    assert sum(result.usage.delivered.values()) == 32
    assert result.hidden == b""


def test_preemption_does_not_change_it(models: dict[str, LoadedModel]) -> None:
    model = models["llama"]
    engine = make_engine(model, gpu_blocks=10, host_blocks=0)
    given = [prompt(40, seed) for seed in range(3)]
    results = run(engine, *(request(model, str(n), ids, max_tokens=60) for n, ids in enumerate(given)))
    assert sum(result.usage.preemptions for result in results.values() if result.usage) > 0
    for number, ids in enumerate(given):
        assert_plain(model, ids, results[str(number)].hidden)


def test_only_batches_in_which_a_prompt_ends_capture_it(
    models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def counting(module: Any) -> AbstractContextManager[list[torch.Tensor]]:
        nonlocal looked
        looked += 1
        return captured(module)

    monkeypatch.setattr(runner_module, "captured", counting)
    engine = make_engine(models["llama"], prefill_chunk_tokens=16)
    results: dict[str, Result] = {}
    engine.submit(request(models["llama"], "r", prompt(60), max_tokens=9))
    collect(engine, results)
    assert engine.steps == 12
    assert looked == 1
    assert not models["llama"].module.base_model._forward_hooks


def test_all_workers_use_the_same_projection() -> None:
    """On any device, with any version of torch: the predictor learns from all of them together."""
    states = torch.eye(3, dtype=torch.float64)
    expected = [[0.8711, -1.1143], [1.4014, 0.193], [-0.4429, -1.3428]]
    np.testing.assert_allclose([values(row) for row in HiddenProjection(3, 2, CPU)(states)], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_its_root_mean_square_is_one(dtype: torch.dtype) -> None:
    states = (torch.randn(20, 256, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)
    for row in HiddenProjection(256, 64, CPU)(states):
        assert np.sqrt(np.mean(values(row) ** 2)) == pytest.approx(1.0, abs=1e-3)


def test_distances_are_nearly_preserved() -> None:
    states = nn.functional.normalize(torch.randn(40, 512, generator=torch.Generator().manual_seed(2)), dim=1)
    rows = np.array([values(row) for row in HiddenProjection(512, 256, CPU)(states)]) / 16
    cosines = (states @ states.T).numpy()
    assert np.abs(rows @ rows.T - cosines).max() < 0.3


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_state_that_cannot_be_scaled_is_left_out(value: float) -> None:
    states = torch.ones(2, 8)
    states[0] = value
    bad, good = HiddenProjection(8, 4, CPU)(states)
    assert (bad, len(good)) == (b"", 8)


def test_a_model_that_does_not_expose_its_states_has_none() -> None:
    module = nn.Linear(4, 4)
    module.base_model = module
    with captured(module) as states:
        module(torch.zeros(1, 4))
    assert states == []
