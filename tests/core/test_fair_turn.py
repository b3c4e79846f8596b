"""Turns: one at a time, nobody twice before another who waits, nobody forgotten, whoever gives up."""

import asyncio
import gc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.fairness.fair_turn import FairTurn


async def served(names: Sequence[str], give_up: set[int], hear_of_it: bool = True) -> list[int]:
    """Positions of those who wait behind somebody, in the order in which they are served; some give up before that.

    `hear_of_it`: those run once more before the turn is passed on.
    """
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
        if hear_of_it:
            await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10.0)
    async with asyncio.timeout(10.0), turn.of("last"):
        return order


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.sets(st.integers(0, 19)), st.booleans())
def test_each_name_has_its_turn(names: list[str], leave: set[int], hear_of_it: bool) -> None:
    give_up = {position for position in leave if position < len(names)}
    order = asyncio.run(served(names, give_up, hear_of_it))
    assert sorted(order) == [position for position in range(len(names)) if position not in give_up]
    for name in set(names):
        mine = [position for position in order if names[position] == name]
        assert mine == sorted(mine)
    stay = set(order)
    rounds = [sum(earlier in stay and names[earlier] == names[position] for earlier in range(position)) for position in order]
    assert rounds == sorted(rounds), "who has had fewer turns comes first"


@pytest.mark.parametrize("hear_of_it", [True, False])
async def test_those_who_give_up_cost_their_name_no_turn(hear_of_it: bool) -> None:
    names = "a" * 5 + "b" * 5 + "a"
    assert await served(names, set(range(5)), hear_of_it) == [10, 5, 6, 7, 8, 9]


def cancelled_futures() -> int:
    gc.collect()
    return sum(type(each) is asyncio.Future and each.cancelled() for each in gc.get_objects())


async def test_nothing_is_kept_of_those_who_give_up() -> None:
    turn = FairTurn()

    async def wait() -> None:
        async with turn.of("a"):
            pass

    async with turn.of("first"):
        stays = asyncio.ensure_future(wait())
        before = cancelled_futures()
        for _ in range(20):
            leaves = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            leaves.cancel()
            await asyncio.wait({leaves})
        del leaves  # whose error has a frame that has its future
        assert cancelled_futures() == before
    await asyncio.wait_for(stays, 10.0)


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
