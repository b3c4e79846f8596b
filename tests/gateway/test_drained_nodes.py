"""Where steps go while nodes are drained."""

from pbkv_cluster.store.cluster_index import NodeState, NodeStateEntry
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import PATIENCE_S, Rig, running
from tests.polling import eventually


async def show(rig: Rig, node: str, state: NodeState) -> None:
    await rig.directory.announce_node_state(NodeStateEntry(node, "10.0.0.1", state, "new memory"))


async def worker_of_new_workflow(rig: Rig) -> str:
    """Of equal workers without open workflows, a step goes to the first by id."""
    workflow = await rig.start_workflow()
    worker = (await rig.run(workflow)).accepted[0].worker_id
    await rig.end_workflow(workflow)
    return worker


async def goes_to(rig: Rig, worker: str) -> None:
    async def arrived() -> bool:
        return await worker_of_new_workflow(rig) == worker

    await eventually(arrived, PATIENCE_S)


async def test_a_node_that_is_drained_gets_no_steps_until_it_serves_again() -> None:
    async with running(ScriptedWorker("w0", node_id="n0"), ScriptedWorker("w1", node_id="n1")) as rig:
        await show(rig, "n0", NodeState.SERVING)
        await goes_to(rig, "w0")
        await show(rig, "n0", NodeState.DRAINING)
        await goes_to(rig, "w1")
        assert [await worker_of_new_workflow(rig) for _ in range(5)] == ["w1"] * 5
        await show(rig, "n0", NodeState.SERVING)
        await goes_to(rig, "w0")


async def test_steps_go_to_a_node_that_is_drained_if_there_is_no_other() -> None:
    async with running(ScriptedWorker("w0", node_id="n0"), ScriptedWorker("w1", node_id="n1")) as rig:
        await show(rig, "n0", NodeState.DRAINING)
        await goes_to(rig, "w1")
        await rig.directory.withdraw_worker("w1")
        await goes_to(rig, "w0")


async def test_the_status_shows_nodes() -> None:
    async with running(ScriptedWorker("w0", node_id="n0")) as rig:
        await show(rig, "n0", NodeState.DRAINING)
        (node,) = (await rig.status()).nodes
        assert (node.node_id, node.host, node.state, node.reason) == ("n0", "10.0.0.1", "draining", "new memory")
