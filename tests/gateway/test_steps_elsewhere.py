"""A workflow whose steps run on two real workers: each has the record of the whole, and one of them reports it at the end."""

from pathlib import Path
from typing import Any

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.real_workers import SIZES, real_workers
from tests.gateway.rig import PATIENCE_S, running
from tests.polling import eventually


def untimed(steps: list[StepLog]) -> list[tuple[Any, ...]]:
    return [
        (
            each.number,
            each.agent,
            each.came_from,
            each.follows,
            each.runs,
            each.symbol,
            each.output_blocks,
            each.ended_at >= 0.0,
        )
        for each in steps
    ]


async def test_a_workflow_on_two_workers_has_one_record(tmp_path: Path) -> None:
    build(tmp_path, "llama", **SIZES)
    places = ["a", "b", "b", "a", "b"]
    async with running() as rig, real_workers(rig, tmp_path, "a", "b") as (first, second):
        workflow = await rig.start_workflow()
        prompt = list(range(40))
        for number, place in enumerate(places):
            keys = block_keys(first.facts.namespace, pack(prompt))
            await rig.announce_blocks(place, keys)  # so the step goes there
            answer = await rig.run(
                workflow,
                agent_id=f"agent-{number % 2}",
                prompt=types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack(prompt))),
                sampling=types_pb2.Sampling(max_tokens=20, ignore_eos=True),
            )
            assert answer.usage.worker_id == place
            prompt = (
                [*prompt, *answer.token_ids, *range(100 + number, 130 + number)] if number != 2 else [*prompt[:32], *range(300)]
            )

        async def agree() -> bool:
            one, two = await first.steps(workflow), await second.steps(workflow)
            return len(one) == len(places) and untimed(one) == untimed(two)

        await eventually(agree, PATIENCE_S)
        one, two = await first.steps(workflow), await second.steps(workflow)
        assert [each.number for each in one] == list(range(len(places)))
        assert all(each.output_blocks and each.ended_at > each.began_at for each in one)
        assert await first.tokens(workflow) == await second.tokens(workflow)
        for each, other in zip(one, two, strict=True):
            assert abs(each.began_at - other.began_at) < PATIENCE_S
        await rig.end_workflow(workflow)
        assert not first.logs
        ((name, steps),) = second.logs
        assert name == workflow
        assert untimed(steps) == untimed(two)
