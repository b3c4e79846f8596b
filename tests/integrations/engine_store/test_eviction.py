"""The order of eviction against a plain model of it."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.integrations.engine_store.eviction import EvictionOrder

KEYS = [bytes([number]) * 16 for number in range(12)]
# The parent of block n is block n // 2: branches, and parents that come after their children.
PARENTS = {key: KEYS[number // 2] if number else bytes(16) for number, key in enumerate(KEYS)}


@given(st.lists(st.tuples(st.sampled_from(["add", "use", "remove", "evict"]), st.sampled_from(KEYS)), max_size=80))
def test_the_leaf_that_was_used_longest_ago_goes_first(history: list[tuple[str, bytes]]) -> None:
    order, uses = EvictionOrder(), list[bytes]()  # uses: present blocks, the one used longest ago first

    def expected(besides: bytes | None = None) -> bytes | None:
        leaves = [key for key in uses if not any(PARENTS[other] == key for other in uses)]
        return next((key for key in leaves if key != besides), None)

    for action, key in history:
        if action == "add" and key not in uses:
            order.add(key, PARENTS[key])
            uses.append(key)
        elif action == "use":
            order.use(key)
            if key in uses:
                uses.remove(key)
                uses.append(key)
        elif action == "remove" and key in uses:
            order.remove(key)
            uses.remove(key)
        elif action == "evict":
            assert order.victim(lambda each, key=key: each != key) == expected(key)  # type: ignore[misc]
            victim = order.victim(lambda each: True)
            assert victim == expected()
            if victim is not None:
                order.remove(victim)
                uses.remove(victim)
        assert len(order) == len(uses)
