"""Training: what the network can learn, and that a worse one is not taken."""

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pbkv_cluster.predictor_service.network.examples import Example, batch_of, features
from pbkv_cluster.predictor_service.network.inference import Model
from pbkv_cluster.predictor_service.network.job import NetworkJob, packed, unpacked
from pbkv_cluster.predictor_service.network.weights import Weights
from pbkv_cluster.predictor_service.workflow.situation import END, RECENT, Situation

HORIZON = 2


def workflow(agents: str, words: Sequence[tuple[int, ...]] = (), hidden: Sequence[bytes] = ()) -> list[Example]:
    """Situations after each step, with its output."""
    found = []
    for step in range(1, len(agents) + 1):
        seen = agents[:step]
        situation = Situation(
            agents=tuple(seen[-RECENT:]),
            step=step,
            count=seen.count(seen[-1]),
            run=len(seen) - len(seen.rstrip(seen[-1])),
            words=words[step - 1] if words else (),
            finished=True,
            hidden=hidden[step - 1] if hidden else b"",
        )
        found.append(Example(features(situation), (*agents[step:], *[END] * HORIZON)[:HORIZON]))
    return found


def job(workflows: Sequence[list[Example]], present: Weights | None = None, **options: bool) -> NetworkJob:
    data = tuple(packed(each) for each in workflows)
    return NetworkJob(data, len(data) // 5, HORIZON, options.get("positions", True), 0, present)


def trained(workflows: Sequence[list[Example]], present: Weights | None = None, **options: bool) -> Weights:
    weights = job(workflows, present, **options).run().network
    assert weights is not None
    return weights


def probabilities(weights: Weights, examples: Sequence[Example]) -> npt.NDArray[np.float32]:
    """[N, K] of the targets."""
    model = Model(weights)
    found = model.forecast(batch_of([each.features for each in examples], model.nodes, weights.hidden))
    return np.array(
        [
            [row[step, model.nodes[label]] for step, label in enumerate(e.targets)]
            for row, e in zip(found, examples, strict=True)
        ]
    )


def order_two(draws: random.Random) -> str:
    """Two equal letters are followed by the next letter, two different ones by the first of them."""
    agents = draws.choice("abc") + draws.choice("abc")
    while len(agents) < 10:
        agents += "abc"[("abc".index(agents[-1]) + 1) % 3] if agents[-1] == agents[-2] else agents[-2]
        if draws.random() < 0.3:
            agents += draws.choice("abc")
    return agents


def by_signal(draws: random.Random, signals: dict[str, int], count: int = 8) -> tuple[str, list[int]]:
    """Random agents, each announced by a number in the step before it."""
    agents = "".join(draws.choice("abc") for _ in range(count))
    return agents, [signals[after] for _, after in pairwise(agents)] + [signals["end"]]


def test_it_learns_what_two_steps_together_say() -> None:
    draws = random.Random(1)
    weights = trained([workflow(order_two(draws)) for _ in range(50)])
    tests = [example for text in ("aab", "abab", "ccac", "bbcb") for example in workflow(text)[1:-1]]
    assert probabilities(weights, tests)[:, 0].mean() > 0.6  # of .7 + .3 / 3, since a random step may follow instead


@pytest.mark.parametrize("positions", [False, True])
def test_it_learns_what_only_words_say(positions: bool) -> None:
    draws = random.Random(2)
    signals = {"a": 11, "b": 22, "c": 33, "end": 44}

    def one() -> list[Example]:
        agents, said = by_signal(draws, signals)
        return workflow(agents, words=[(draws.randrange(1000, 1020), number, draws.randrange(1000, 1020)) for number in said])

    weights = trained([one() for _ in range(60)], positions=positions)
    assert probabilities(weights, one())[:, 0].min() > 0.8


def test_it_learns_what_only_the_hidden_state_says() -> None:
    draws = random.Random(3)
    directions = np.random.default_rng(0).standard_normal((4, 24))
    signals = {"a": 0, "b": 1, "c": 2, "end": 3}

    def one() -> list[Example]:
        agents, said = by_signal(draws, signals)
        noise = np.random.default_rng(draws.randrange(1 << 30)).standard_normal((len(said), 24))
        return workflow(
            agents,
            hidden=[(row + 0.3 * rest).astype("<f2").tobytes() for row, rest in zip(directions[said], noise, strict=True)],
        )

    weights = trained([one() for _ in range(60)])
    assert weights.hidden == 24
    assert probabilities(weights, one())[:, 0].min() > 0.7
    silent = [Example(each.features._replace(hidden=b""), each.targets) for each in one()]
    assert np.isfinite(probabilities(weights, silent)).all()


def test_a_network_that_is_no_better_is_not_taken() -> None:
    draws = random.Random(4)
    workflows = [workflow(order_two(draws)) for _ in range(40)]
    weights = trained(workflows)
    assert job(workflows, weights).run().network is None  # as good as itself
    labels = [label for each in workflows for example in each for label in example.targets]
    draws.shuffle(labels)
    in_turn = iter(labels)
    shuffled = [[Example(each.features, (next(in_turn), next(in_turn))) for each in one] for one in workflows]
    assert job(shuffled).run().network is None  # no better than a constant forecast
    assert job([*shuffled[:32], *workflows[32:]], weights).run().network is None  # worse than the one in use


def test_a_better_network_is_taken_from_one_that_has_gone_stale() -> None:
    draws = random.Random(5)
    renamed = str.maketrans("abc", "bcd")
    old = trained([workflow("abcabc"[draws.randrange(3) :]) for _ in range(20)])
    new = trained([workflow(order_two(draws).translate(renamed)) for _ in range(40)], old)
    assert new.labels == (END, "b", "c", "d")


def test_equal_jobs_give_equal_networks_and_restore_random_state_and_threads() -> None:
    draws = random.Random(6)
    each = job([workflow(order_two(draws)) for _ in range(10)])
    torch.manual_seed(1)
    before = torch.get_rng_state(), torch.get_num_threads()
    one = each.run().network
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    torch.manual_seed(2)
    other = each.run().network
    assert one is not None
    assert other is not None
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])


def test_what_is_packed_comes_back() -> None:
    examples = workflow("ab" * 10, words=[(number,) * number for number in range(20)], hidden=[b"x", b"y"] * 10)
    assert unpacked(packed(examples)) == examples
