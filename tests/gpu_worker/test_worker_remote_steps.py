"""What a worker takes of what it is told of steps elsewhere: nothing after a gap, and nothing after the workflow's end."""

from pathlib import Path

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.rpc.v1 import worker_pb2
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, config, packed, serving, step


def began(index: int) -> worker_pb2.RemoteStep:
    rest = packed(range(BLOCK_TOKENS))
    return worker_pb2.RemoteStep(
        index=index, step=index, length=BLOCK_TOKENS, began=worker_pb2.RemoteStep.Began(agent_id="a", rest=rest)
    )


async def tell(rig: Rig, after: int, *events: worker_pb2.RemoteStep) -> bool:
    request = worker_pb2.TellStepsRequest(workflow_id="w", after=after, remote_steps=events)
    return (await rig.stub.TellSteps(request, timeout=PATIENCE_S)).heard


async def known(rig: Rig) -> bool:
    def look(engine: Engine) -> bool:
        return engine.cache.workflows.find("w") is not None

    return await rig.worker.thread.call(look)


async def test_steps_are_taken_without_gaps_and_until_the_end(model_dirs: dict[str, Path]) -> None:
    async with serving(config(model_dirs["llama"])) as rig:
        await rig.run(step(range(20), step=9, remote_steps=[began(2)], remote_after=1))
        assert not await tell(rig, 2, began(3)), "what came with the step followed something that has not arrived"
        await rig.run(step(range(20), step=10, remote_steps=[began(1), began(2)], remote_after=-1))
        assert await tell(rig, 2, began(3))
        await rig.retire("w")
        assert await tell(rig, 2, began(3))
        assert not await known(rig)
