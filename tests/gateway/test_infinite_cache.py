"""The infinite cache against a model that keeps whole sequences."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.prompt_keys import PromptKeys

NAMESPACE = Namespace("m", "1", "float32", "test")

# Sequences of few different blocks, so that prefixes meet often.
SEQUENCES = st.lists(st.integers(0, 2), max_size=5).flatmap(
    lambda blocks: st.integers(0, BLOCK_TOKENS - 1).map(
        lambda rest: [b for b in blocks for _ in range(BLOCK_TOKENS)] + [9] * rest
    )
)


def common_blocks(ids: list[int], held: list[int]) -> int:
    """Leading full blocks of `ids` that a cache which computed `held` has."""
    blocks = 0
    while (upto := (blocks + 1) * BLOCK_TOKENS) <= min(len(ids), len(held)) and ids[:upto] == held[:upto]:
        blocks += 1
    return blocks


@given(st.lists(st.tuples(SEQUENCES, SEQUENCES, st.sampled_from(["", "acme"])), max_size=12))
def test_available_is_the_longest_prefix_of_anything_computed_before(steps: list[tuple[list[int], list[int], str]]) -> None:
    cache = InfiniteCache(capacity_blocks=10_000)
    computed: list[tuple[str, list[int]]] = []
    for ids, output, tenant in steps:
        keys = PromptKeys(pack(ids), tenant)
        longest = max((common_blocks(ids, held) for owner, held in computed if owner == tenant), default=0)
        limit = max(len(ids) - 1, 0) // BLOCK_TOKENS
        assert cache.match(keys.of(NAMESPACE), len(ids)) == min(longest, limit) * BLOCK_TOKENS
        cache.remember(keys.of(NAMESPACE))
        cache.remember(keys.of_output(NAMESPACE, pack(output)))
        computed.append((tenant, ids + output[:-1]))


@given(SEQUENCES, SEQUENCES)
def test_output_keys_go_on_where_the_prompts_end(ids: list[int], output: list[int]) -> None:
    keys = PromptKeys(pack(ids), "acme", [NAMESPACE])
    assert keys.of_all(NAMESPACE, pack(output)) == block_keys(replace(NAMESPACE, salt="acme"), pack(ids + output[:-1]))


@given(st.lists(st.lists(st.integers(0, 30), max_size=10), max_size=20), st.integers(0, 12))
def test_memory_is_bounded_and_the_oldest_goes_first(batches: list[list[int]], capacity: int) -> None:
    cache = InfiniteCache(capacity)
    model: list[int] = []
    for batch in batches:
        cache.remember(bytes([key]) for key in batch)
        model += [key for position, key in enumerate(batch) if key not in model and key not in batch[:position]]
        model = model[max(len(model) - capacity, 0) :]
        assert len(cache) == len(model) <= capacity
        held = {key for key in range(31) if cache.match([bytes([key])], BLOCK_TOKENS + 1)}
        assert held == set(model)
