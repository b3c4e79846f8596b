"""Where the contexts of a workflow's agents lie, and what that makes of the choice of a worker."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.router import Candidate, Costs, choose
from pbkv_cluster.store.block_map import WorkerKey

SPACE = Namespace("m", "r", "f", "l")
ONE, TWO = ("one", "1"), ("one", "2")  # incarnations of one worker
COSTS = Costs(seconds_per_token=1e-3, parallelism=8)

paths = st.lists(st.integers(0, 2), max_size=5)


def keys(path: list[int]) -> list[bytes]:
    return block_keys(SPACE, pack([symbol for symbol in path for _ in range(BLOCK_TOKENS)]))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([ONE, TWO]), paths), max_size=8), paths)
def test_blocks_of_the_latest_contexts_count_once_where_they_lie(
    steps: list[tuple[str, WorkerKey, list[int]]], prompt: list[int]
) -> None:
    contexts = Contexts()
    for agent, worker, path in steps:
        contexts.note("w", agent, worker, keys(path))
        contexts.note("other", agent, worker, keys([9, *path]))
    latest = {agent: (worker, set(keys(path))) for agent, worker, path in steps}
    found = contexts.tokens("w", dict.fromkeys((ONE, TWO), keys(prompt)))
    for name in (ONE, TWO):
        lying = set().union(*(blocks for worker, blocks in latest.values() if worker == name))
        assert found.get(name, 0) == len(lying - set(keys(prompt))) * BLOCK_TOKENS
    contexts.drop("w")
    contexts.drop("other")
    assert contexts.size_bytes == 0
    assert contexts.tokens("w", {ONE: keys(prompt)}) == {}


def test_contexts_are_bounded_in_bytes_and_agents() -> None:
    contexts = Contexts(capacity_bytes=8 * 20)
    for number in range(30):
        contexts.note(f"w{number % 5}", "a", ONE, keys([0] * 5))
    assert contexts.size_bytes == 8 * 20
    assert [bool(contexts.tokens(f"w{number}", {ONE: []})) for number in range(5)] == [False, True, True, True, True]
    for number in range(40):
        contexts.note("many", f"agent-{number}", ONE, keys([number]))
    assert contexts.tokens("many", {ONE: []}) == {ONE: 16 * BLOCK_TOKENS}


def test_a_context_is_compared_with_the_prompts_keys_where_it_lies() -> None:
    """Engines have other keys for equal tokens; a worker that no step can go to does not matter."""
    other = block_keys(replace(SPACE, layout="other"), pack([0] * 2 * BLOCK_TOKENS))
    there, gone = ("there", "1"), ("gone", "1")
    contexts = Contexts()
    contexts.note("w", "a", ONE, keys([0, 0]))
    contexts.note("w", "b", there, other)
    contexts.note("w", "c", gone, keys([5]))
    assert contexts.tokens("w", {ONE: keys([0]), there: other[:1]}) == {ONE: BLOCK_TOKENS, there: BLOCK_TOKENS}


def worker(name: str, gpu: int = 0, queued: int = 0, context: int = 0, duplicates: int = 0) -> Candidate:
    return Candidate(name, gpu, 0, 0, queued, 0.001, False, context, duplicates)


def test_a_workflow_stays_with_its_contexts_unless_moving_saves_more() -> None:
    home = worker("home", gpu=160, context=640, duplicates=160)
    assert choose([home, worker("shared", gpu=320)], COSTS) == ("home", Reason.ROUTE_CONTEXT)
    assert choose([home, worker("shared", gpu=960)], COSTS).worker_id == "shared", "that much prefill"
    assert choose([home._replace(queued_tokens=4000), worker("idle")], COSTS) == ("idle", Reason.ROUTE_QUEUE)
    assert choose([home._replace(queued_tokens=1000), worker("idle")], COSTS).worker_id == "home", "a short queue is worth it"


def test_a_second_copy_costs_the_room_of_what_it_evicts() -> None:
    holder = worker("holder", gpu=800, queued=7000)
    assert choose([holder, worker("idle", duplicates=0)], COSTS).worker_id == "idle"
    assert choose([holder, worker("idle", duplicates=800)], COSTS).worker_id == "holder"
