"""The table of softmax regressions: its updates, and its size."""

import numpy as np
import pytest
import torch

from pbkv_cluster.predictor_service.experts.linear.softmax_table import INITIAL_SQUARES, RATE, STEP_DECAY, SoftmaxTable

HASHES = 1 << 16


def test_a_step_follows_the_gradient_that_autograd_finds() -> None:
    rng = np.random.default_rng(3)
    record = np.concatenate(([12, 8], rng.choice(HASHES, 20, replace=False))).astype(np.uint16)
    by_size = rng.random((16, 2)).astype(np.float32)
    values = by_size[[12, 8], [0, 1]].repeat((12, 8))
    table = SoftmaxTable(HASHES, 3, by_size)
    weights = torch.zeros((20, 5), requires_grad=True)
    squares = torch.full((20, 5), INITIAL_SQUARES)
    for target, share in ((2, 1.0), (4, 1.0), (2, 0.5), (0, 2.0)):
        table.learn(record, np.array([[-1, target, -1]]), np.array([share], dtype=np.float32), 5)
        loss = -torch.log_softmax(torch.from_numpy(values) @ weights, 0)[target] * share
        (gradient,) = torch.autograd.grad(loss, weights)
        squares += gradient**2
        weights = (weights - RATE * STEP_DECAY * gradient / squares.sqrt()).detach().requires_grad_()
    found = table.forecast(record, 1, 5)[0]
    want = torch.softmax(torch.from_numpy(values) @ weights, 0).detach().numpy()
    assert found[1] == pytest.approx(want, abs=1e-5)
    assert found[[0, 2]] == pytest.approx(np.full((2, 5), 0.2))  # nothing was learnt of the other steps


def test_a_table_that_has_seen_much_is_bounded() -> None:
    alike = np.full((257, 1), 0.1, dtype=np.float32)
    table, rng = SoftmaxTable(HASHES, 16, alike), np.random.default_rng(0)
    for round_ in range(700):
        table.learn(
            np.concatenate(([100], rng.integers(0, HASHES, 100))).astype(np.uint16),
            np.array([[3 if step == round_ % 16 else -1 for step in range(16)]]),
            np.ones(1, dtype=np.float32),
            4 + round_ // 25,
        )
    assert table.nbytes < (14 << 20) + 2 * HASHES  # weights and squares, and the rows of hashes
    every = np.arange(HASHES, dtype=np.uint16).reshape(256, 256)
    found = table.forecast(np.pad(every, ((0, 0), (1, 0)), constant_values=256).ravel(), 256, 31)
    assert np.isfinite(found).all()
