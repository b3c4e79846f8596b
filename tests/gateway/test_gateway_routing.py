"""Routing with a real index, and the status of the cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.load_speeds import LoadSpeed, LoadSpeeds
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import NAMESPACE, ScriptedWorker
from tests.gateway.rig import running


async def test_a_step_goes_where_its_prefix_is_cached() -> None:
    async with running(*(ScriptedWorker(f"w{n}") for n in range(3))) as rig:
        keys = block_keys(replace(NAMESPACE, salt="acme"), pack(list(b"x" * 64)))
        await rig.announce_blocks("w0", keys, Tier.HOST)
        await rig.announce_blocks("w2", keys)
        prompt = types_pb2.Prompt(text="x" * 64 + "what now?")
        acme, other = await rig.start_workflow(tenant="acme"), await rig.start_workflow(tenant="other")
        assert (await rig.run(acme, prompt=prompt)).usage.worker_id == "w2", "the GPU before the host"
        assert (await rig.run(other, prompt=prompt)).usage.worker_id == "w0", "another tenant's blocks do not count"
        decisions = (await rig.status()).decisions
        assert (decisions["route_prefix"], decisions["route_least_loaded"]) == (1, 1)


@asynccontextmanager
async def busy_holder(*others: ScriptedWorker) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """A worker that holds a prefix and runs a step on it. Yields what runs another one, and returns where that ran."""
    holder = ScriptedWorker("holder", stop_at=0)
    async with running(holder, *others, engine={"max_running": 1}) as rig:
        for worker in others:
            await rig.announce_blocks(worker.id, [])
        await rig.announce_blocks("holder", block_keys(NAMESPACE, pack(list(b"x" * 64))), Tier.HOST)
        prompt, sampling = types_pb2.Prompt(text="x" * 64 + "what now?"), types_pb2.Sampling(max_tokens=170)

        async def run() -> str:
            workflow = await rig.start_workflow()
            return (await rig.run(workflow, prompt=prompt, sampling=sampling)).usage.worker_id

        waiting = asyncio.create_task(run())
        await holder.stopped.wait()
        yield run
        holder.go.set()
        assert await waiting == "holder"


async def test_a_step_goes_where_it_can_copy_its_prefix() -> None:
    """The worker that holds the prefix is busy; others can read it there, its sibling sooner than a worker of another node."""
    async with busy_holder(ScriptedWorker("a-peer", node_id="other"), ScriptedWorker("sibling")) as run:
        assert await run() == "sibling"
    deaf = ScriptedWorker("a-sibling", reads_siblings=False)
    async with busy_holder(deaf, ScriptedWorker("peer", node_id="other")) as run:
        assert await run() == "peer", "the sibling does not read what others hold"
    deaf = ScriptedWorker("a-peer", node_id="other", reads_peers=False)
    async with busy_holder(deaf, ScriptedWorker("peer", node_id="other")) as run:
        assert await run() == "peer"


async def test_a_worker_tells_the_gateway_what_its_loads_are_worth() -> None:
    """The sibling reports that it computes sooner than it copies: the next such step goes to the other node."""
    slow = LoadSpeeds(prefill_token_s=1e-3, loads={Tier.SIBLING: LoadSpeed(token_s=2e-3, queue_s=0.0)})
    async with busy_holder(ScriptedWorker("peer", node_id="other"), ScriptedWorker("sibling", speeds=slow)) as run:
        assert [await run(), await run()] == ["sibling", "peer"]


async def test_each_engines_blocks_are_found_by_its_own_keys_alone() -> None:
    """Workers of two engines: what one has cached is nothing to the other, even under the keys of the other."""
    theirs = replace(NAMESPACE, layout="vllm")
    ours, foreign = ScriptedWorker("ours"), ScriptedWorker("vllm", namespace=theirs, engine="vllm 0.32.0")
    async with running(ours, foreign) as rig:
        tokens = {letter: pack(list(letter.encode() * 64)) for letter in "abc"}
        await rig.announce_blocks("ours", [*block_keys(NAMESPACE, tokens["a"]), *block_keys(theirs, tokens["b"])])
        await rig.announce_blocks("vllm", [*block_keys(theirs, tokens["b"])[:2], *block_keys(NAMESPACE, tokens["a"])])
        for letter, worker in (("a", "ours"), ("b", "vllm"), ("c", "ours")):
            prompt = types_pb2.Prompt(text=letter * 64 + "what now?")
            finished = await rig.run(await rig.start_workflow(), prompt=prompt)
            assert finished.usage.worker_id == worker
            assert finished.usage.available_tokens == 0
            again = await rig.run(await rig.start_workflow(), prompt=prompt)
            assert again.usage.available_tokens == 64, "whichever engine has computed it"
        decisions = (await rig.status()).decisions
        assert (decisions["route_prefix"], decisions["route_least_loaded"]) == (4, 2)
        engines = {worker.worker_id: worker.engine for worker in (await rig.status()).workers}
        assert engines == {"ours": "pbkv", "vllm": "vllm 0.32.0"}


async def test_a_workflow_stays_where_it_was_while_nothing_is_announced() -> None:
    async with running(*(ScriptedWorker(f"w{n}") for n in range(3))) as rig:
        workflow = await rig.start_workflow()
        homes = {(await rig.run(workflow)).usage.worker_id for _ in range(5)}
        assert len(homes) == 1
        assert (await rig.status()).decisions["route_affinity"] == 4


async def test_the_status_tells_of_workers_totals_and_what_is_reachable() -> None:
    workers = [ScriptedWorker("w0", captured={Tier.GPU: 16}), ScriptedWorker("w1", captured={Tier.GPU: 16})]
    async with running(*workers) as rig:
        await rig.add_predictor()
        workflow = await rig.start_workflow()
        prompt = types_pb2.Prompt(text="x" * 40)
        served = {(await rig.run(workflow, prompt=prompt)).usage.worker_id for _ in range(2)}
        await rig.sees(
            lambda status: status.predictor_reachable and status.index_reachable, "predictor and index are reachable"
        )
        status = await rig.status()
        assert (status.cluster, status.model, status.open_workflows, status.running_steps) == ("pbkv", "scripted", 1, 0)
        assert [(each.worker_id, each.node_id, each.reachable) for each in status.workers] == [
            ("w0", "node", True),
            ("w1", "node", True),
        ]
        assert {each.worker_id for each in status.workers if each.running} == served
        totals = status.totals
        # Of the first prompt an infinite cache had only what its worker had; of the second, both full blocks.
        assert (totals.steps, totals.prompt_tokens, totals.available_tokens, totals.generated_tokens) == (2, 80, 48, 8)
        assert [(each.tier, each.tokens) for each in totals.delivered] == [(types_pb2.TIER_GPU, 32)]
        await workers[1].server.stop(0)
        await rig.sees(lambda status: not status.workers[1].reachable, "the lost worker is shown as such")
        assert (await rig.status()).workers[0].reachable
        assert [(each.access_updates_applied, each.access_workflows) for each in status.workers] == [(4, 9), (4, 9)]


async def test_a_worker_that_leaves_the_directory_is_forgotten() -> None:
    async with running(ScriptedWorker("w0"), ScriptedWorker("w1")) as rig:
        await rig.directory.withdraw_worker("w0")
        again = ScriptedWorker("w1", incarnation="2")
        await rig.add_worker(again)
        workflow = await rig.start_workflow()
        await rig.sees(
            lambda status: any(each.address == again.address for each in status.workers), "the new incarnation is there"
        )
        for _ in range(3):
            assert (await rig.run(workflow)).usage.worker_id == "w1"
        assert len(again.requests) == 3


async def test_what_a_worker_held_before_it_restarted_attracts_no_steps() -> None:
    async with running(ScriptedWorker("w0"), ScriptedWorker("w1")) as rig:
        workflow = await rig.start_workflow()
        prompt = types_pb2.Prompt(text="x" * 200)
        home = (await rig.run(workflow, agent_id="a", prompt=prompt)).usage.worker_id
        again = await rig.add_worker(ScriptedWorker(home, incarnation="2"))
        await rig.sees(
            lambda status: any(each.address == again.address for each in status.workers), "the new incarnation is there"
        )
        assert (await rig.run(workflow, agent_id="b")).usage.worker_id == "w0", "the first of equals"
        decisions = (await rig.status()).decisions
        assert decisions["route_least_loaded"] == 2, "neither for affinity nor for the contexts there"
