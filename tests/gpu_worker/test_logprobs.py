"""Log-probabilities of output tokens, against the model's own logits."""

from typing import Any

import pytest
import torch

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import ids, make_engine, request, run

PROMPT = ids(40)


@pytest.fixture
def model(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


def scores(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token after each of `tokens`, by the model's own attention."""
    model.module.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            return torch.log_softmax(model.module(torch.tensor([tokens])).logits[0].double(), dim=-1)
    finally:
        model.module.set_attn_implementation(IMPLEMENTATION)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}, {"forced_output": pack([7, 8, 9])}])
def test_they_are_those_of_the_model(model: LoadedModel, sampling: dict[str, Any]) -> None:
    engine = make_engine(model)
    results = run(
        engine,
        request(model, "asks", PROMPT, top_logprobs=3, **sampling),
        request(model, "asks-less", PROMPT, top_logprobs=0, **sampling),
        request(model, "asks-not", PROMPT, **sampling),
    )
    found = results["asks"]
    assert found.tokens == results["asks-less"].tokens == results["asks-not"].tokens
    assert len(found.logprobs) == len(found.tokens) > 0
    own = scores(model, PROMPT + found.tokens)[len(PROMPT) - 1 : -1]
    for row, token, told in zip(own, found.tokens, found.logprobs, strict=True):
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [logprob for _, logprob in told.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert [float(row[other]) for other, _ in told.top] == pytest.approx([logprob for _, logprob in told.top], abs=1e-3)
    assert [each.logprob for each in results["asks-less"].logprobs] == pytest.approx([each.logprob for each in found.logprobs])
    assert not any(each.top for each in results["asks-less"].logprobs)
    assert not results["asks-not"].logprobs


def test_a_preempted_sequence_tells_each_token_once(model: LoadedModel) -> None:
    prompts = [ids(16 * 5, seed) for seed in range(4)]
    engine = make_engine(model, gpu_blocks=24, host_blocks=0)
    results = run(engine, *(request(model, str(n), prompt, max_tokens=40, top_logprobs=1) for n, prompt in enumerate(prompts)))
    assert sum(result.usage.preemptions for result in results.values() if result.usage) > 0
    for result in results.values():
        assert len(result.logprobs) == len(result.tokens) == 40
        assert [each.top[0][0] for each in result.logprobs] == result.tokens, "greedy takes the likeliest"


@pytest.mark.parametrize("most", [-1, 21])
def test_how_many_may_be_asked_for(most: int) -> None:
    with pytest.raises(InvalidArgument, match=r"sampling\.top_logprobs"):
        SamplingParams(top_logprobs=most)
