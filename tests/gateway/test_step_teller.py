"""What the gateway tells workers of the steps of a workflow that run elsewhere, and when."""

from itertools import chain

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import NAMESPACE, ScriptedWorker
from tests.gateway.rig import Rig, running, until

TEXT = "x" * 64


async def step_on(rig: Rig, workflow: str, worker: str, text: str) -> None:
    keys = block_keys(NAMESPACE, pack(list(text.encode())))
    await rig.announce_blocks(worker, keys)
    assert (await rig.run(workflow, prompt=types_pb2.Prompt(text=text))).usage.worker_id == worker


def told(worker: ScriptedWorker) -> list[tuple[int, str | None]]:
    return list(dict.fromkeys(chain.from_iterable(steps for _, steps in worker.tellings)))


async def test_each_worker_is_told_of_the_others_steps() -> None:
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    async with running(one, two) as rig:
        workflow = await rig.start_workflow()
        await step_on(rig, workflow, "one", TEXT)
        assert not one.requests[0].remote_steps
        await step_on(rig, workflow, "two", TEXT + "y" * 64)
        began, ended = two.requests[0].remote_steps
        assert (began.step, began.began.agent_id, began.began.rest.data) == (0, "agent", pack(list(TEXT.encode())))
        assert (ended.step, ended.ended.output.data) == (0, b""), "four tokens fill no block"
        assert 0.0 <= ended.age_s <= began.age_s
        await until(lambda: told(one) == [(1, "began"), (1, "ended")], "the first worker hears of the second step")
        assert not two.tellings, "it was told with its own step"
        await step_on(rig, workflow, "one", TEXT + "y" * 64 + "z" * 64)
        assert not one.requests[1].remote_steps, "it has heard of everything"
        await until(lambda: told(two) == [(2, "began"), (2, "ended")], "the second worker hears of the third step")


async def test_a_prompt_is_told_as_what_it_adds() -> None:
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    async with running(one, two) as rig:
        workflow = await rig.start_workflow()
        await step_on(rig, workflow, "one", TEXT)
        await step_on(rig, workflow, "one", TEXT + "y" * 32)
        await step_on(rig, workflow, "two", TEXT + "y" * 32 + "z" * 64)
        second = next(each.began for each in two.requests[0].remote_steps if each.step == 1)
        assert (second.came_from, second.follows, second.rest.data) == (0, 4, pack(list(b"y" * 32)))


async def test_what_was_not_heard_is_told_again_from_the_start() -> None:
    one, two = ScriptedWorker("one", deaf=1), ScriptedWorker("two")
    async with running(one, two) as rig:
        workflow = await rig.start_workflow()
        await step_on(rig, workflow, "one", TEXT)
        await step_on(rig, workflow, "two", TEXT + "y" * 64)
        await until(lambda: len(one.tellings) >= 2 and (1, "ended") in told(one), "it is told again")
        (first, _), (again, steps) = one.tellings[:2]
        assert (first, again, steps[0]) == (-1, -1, (1, "began"))
        assert (await rig.status()).decisions[Reason.STEP_UNHEARD] == 1


async def test_with_one_worker_nothing_is_told() -> None:
    only = ScriptedWorker("only")
    async with running(only) as rig:
        workflow = await rig.start_workflow()
        for _ in range(2):
            await rig.run(workflow)
        await rig.end_workflow(workflow)
        assert not only.tellings
        assert not any(request.remote_steps for request in only.requests)
