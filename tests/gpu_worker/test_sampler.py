"""The sampler against the distributions that it should draw from. Seeds are fixed, so results never change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.gpu_worker.engine.sampler import sample

DRAWS = 4000
HALVES = torch.tensor([1 / 8, 1 / 2, 1 / 32, 1 / 4, 1 / 16, 1 / 32], dtype=torch.float64)


def draw(probabilities: torch.Tensor, params: SamplingParams, draws: int = DRAWS) -> Counter[int]:
    """How often each token is drawn at the first `draws` positions of one seed."""
    logits = probabilities.log().expand(draws, -1)
    return Counter(sample(logits, [params] * draws, range(draws)))


def chi_square(drawn: Counter[int], expected: torch.Tensor) -> float:
    total = drawn.total()
    wanted = {token: float(p) * total for token, p in enumerate(expected) if p > 0}
    assert set(drawn) <= set(wanted), "a token that cannot come was drawn"
    return sum((drawn[token] - count) ** 2 / count for token, count in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_greedy_is_the_largest_logit(dtype: torch.dtype) -> None:
    logits = torch.randn(32, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    tokens = sample(logits, [SamplingParams(seed=row) for row in range(32)], range(32))
    assert tokens == [int(row.argmax()) for row in logits]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_flattens_or_sharpens_the_distribution(temperature: float) -> None:
    expected = HALVES ** (1 / temperature) / (HALVES ** (1 / temperature)).sum()
    drawn = draw(HALVES, SamplingParams(temperature=temperature, seed=7))
    assert chi_square(drawn, expected) < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds
    for other in {0.5, 1.0, 2.0} - {temperature}:
        assert chi_square(drawn, HALVES ** (1 / other) / (HALVES ** (1 / other)).sum()) > 100


def test_a_low_temperature_is_greedy() -> None:
    assert set(draw(HALVES, SamplingParams(temperature=1e-6, seed=3), 200)) == {1}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1}), (0.499999, {1}), (0.500001, {1, 3}), (0.75001, {0, 1, 3}), (0.9, {0, 1, 3, 4}), (1.0, {0, 1, 2, 3, 4, 5})],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    drawn = draw(HALVES, SamplingParams(temperature=1.0, top_p=top_p, seed=11))
    assert set(drawn) == kept
    nucleus = torch.tensor([float(p) if token in kept else 0.0 for token, p in enumerate(HALVES)], dtype=torch.float64)
    assert chi_square(drawn, nucleus / nucleus.sum()) < 20.5


def test_top_p_applies_after_temperature() -> None:
    # At temperature 2 the first token's share is sqrt(1/2) / 2.23 = 0.32 of the whole.
    assert set(draw(HALVES, SamplingParams(temperature=2.0, top_p=0.4, seed=1), 500)) == {1, 3}
    assert set(draw(HALVES, SamplingParams(temperature=1.0, top_p=0.4, seed=1), 500)) == {1}


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.sampled_from([0.1, 0.9, 1.0]), st.integers(0, 2**64 - 1)),
        min_size=2,
        max_size=6,
    ),
    data=st.data(),
)
def test_a_token_does_not_depend_on_other_rows(rows: Sequence[tuple[float, float, int]], data: st.DataObject) -> None:
    logits = torch.randn(len(rows), 300, generator=torch.Generator().manual_seed(len(rows)), dtype=torch.float64)
    params = [SamplingParams(temperature=temperature, top_p=top_p, seed=seed) for temperature, top_p, seed in rows]
    positions = [data.draw(st.integers(0, 10_000)) for _ in rows]
    together = sample(logits, params, positions)
    for row, token in enumerate(together):
        assert sample(logits[row : row + 1], [params[row]], [positions[row]]) == [token]
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = sample(logits[order], [params[row] for row in order], [positions[row] for row in order])
    assert shuffled == [together[row] for row in order]


def test_positions_and_seeds_draw_independently() -> None:
    logits = torch.zeros(1, 1 << 16)
    params = SamplingParams(temperature=1.0, seed=5)
    by_position = [sample(logits, [params], [position])[0] for position in range(60)]
    by_seed = [sample(logits, [replace(params, seed=seed)], [0])[0] for seed in range(60)]
    assert len(set(by_position)) > 55
    assert len(set(by_seed)) > 55
    assert by_position == [sample(logits, [params], [position])[0] for position in range(60)]
