"""Steps that begin after the end of others: none waits for ever, and few wait before they count."""

import asyncio

from pbkv_cluster.gateway.step.admission.steps_in_flight import StepsInFlight
from pbkv_cluster.gateway.step.step import Step
from tests.gateway.rig import PATIENCE_S, until


async def test_a_step_that_counts_waits_for_the_end_of_another() -> None:
    steps = StepsInFlight()
    first, second = Step(0.0, steps.end), Step(0.0, steps.end)
    steps.begin(first, "w", "a")
    steps.begin(second, "w", "b")
    waiting = asyncio.ensure_future(steps.wait(second, "w", ["a", "unknown"]))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.cancel()
    await asyncio.wait_for(waiting, PATIENCE_S)


async def test_of_a_chain_of_steps_one_waits_uncounted() -> None:
    steps, counted = StepsInFlight(), set[Step]()
    chain = [Step(0.0, steps.end) for _ in range(100)]

    async def begin(number: int) -> None:
        steps.begin(chain[number], "w", str(number))
        await steps.wait(chain[number], "w", [str(number - 1)], lambda step: step in counted)
        counted.add(chain[number])

    tasks = [asyncio.ensure_future(begin(number)) for number in range(len(chain))]
    await until(lambda: len(counted) >= len(chain) - len(chain) // 2, "at most one waits for each that counts")
    for step in chain:
        step.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)


async def test_steps_that_name_each_other_do_not_wait_for_ever() -> None:
    steps = StepsInFlight()
    first, second, again = (Step(0.0, steps.end) for _ in range(3))
    steps.begin(first, "w", "a")
    steps.begin(second, "w", "b")
    steps.begin(again, "w", "a")  # the same id once more
    waits = [steps.wait(second, "w", ["a"]), steps.wait(again, "w", ["b"]), steps.wait(again, "w", ["a"])]
    tasks = [asyncio.ensure_future(each) for each in waits]
    first.cancel()
    await until(lambda: tasks[0].done(), "the second waits for nothing that began after it")
    second.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
