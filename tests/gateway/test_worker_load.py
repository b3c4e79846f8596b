"""What the gateway knows of its steps on a worker."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gateway.routing.load import StepLoad, WorkerLoad

NAMESPACE = Namespace("m", "1", "float32", "test")
PROMPTS = st.lists(st.integers(0, 1), max_size=8)  # a number for each block


def keys_of(blocks: list[int]) -> list[bytes]:
    return block_keys(NAMESPACE, pack([number for number in blocks for _ in range(BLOCK_TOKENS)]))


def common(first: list[int], second: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.tuples(PROMPTS, st.integers(1, 1000))), max_size=30),
    PROMPTS,
)
def test_tokens_and_prefixes_are_those_of_the_steps_in_flight(
    changes: list[tuple[int, tuple[list[int], int] | None]], prompt: list[int]
) -> None:
    load, expected = WorkerLoad(), dict[int, tuple[list[int], int]]()
    for step, placed in changes:
        if placed is None:
            load.discard(step)
            expected.pop(step, None)
        else:
            load.add(step, StepLoad(keys_of(placed[0]), placed[1]))
            expected[step] = placed
    assert set(load) == set(expected)
    assert load.tokens == sum(tokens for _, tokens in expected.values())
    longest = max((common(prompt, blocks) for blocks, _ in expected.values()), default=0)
    assert load.pending_tokens(keys_of(prompt)) == longest * BLOCK_TOKENS
