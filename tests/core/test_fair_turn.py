"""Turns: one at a time, nobody twice before another who waits, nobody forgotten, whoever gives up."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.fairness.fair_turn import FairTurn


async def served(names: Sequence[str], give_up: set[int]) -> list[int]:
    """Positions of those who wait behind somebody, in the order in which they are served; some give up before that."""
    turn, order, running = FairTurn(), list[int](), 0

    async def serve(position: int) -> None:
        nonlocal running
        async with turn.of(names[position]):
            running += 1
            assert running == 1
            order.append(position)
            await asyncio.sleep(0)
            running -= 1

    async with turn.of("first"):
        tasks = [asyncio.ensure_future(serve(position)) for position in range(len(names))]
        await asyncio.sleep(0)
        for position in give_up:
            tasks[position].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10.0)
    async with asyncio.timeout(10.0), turn.of("last"):
        return order


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.sets(st.integers(0, 19)))
def test_each_name_has_its_turn(names: list[str], leave: set[int]) -> None:
    give_up = {position for position in leave if position < len(names)}
    order = asyncio.run(served(names, give_up))
    assert sorted(order) == [position for position in range(len(names)) if position not in give_up]
    for name in set(names):
        mine = [position for position in order if names[position] == name]
        assert mine == sorted(mine)
    if not give_up:
        rounds = [sum(names[earlier] == names[position] for earlier in range(position)) for position in order]
        assert rounds == sorted(rounds), "who has had fewer turns comes first"


async def test_a_turn_that_comes_to_one_who_gives_up_goes_on() -> None:
    turn = FairTurn()

    async def wait() -> None:
        async with turn.of("a"):
            raise AssertionError("it has given up")

    async with turn.of("first"):
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
    waiting.cancel()  # in the same round in which its turn comes
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    async with asyncio.timeout(10.0), turn.of("last"):
        pass
