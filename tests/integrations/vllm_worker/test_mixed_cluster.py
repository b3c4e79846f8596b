"""A cluster in which one worker has our engine and one vLLM's, with the same model, behind one gateway."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pbkv_cluster.cli.main import main
from pbkv_cluster.client import Accepted, AsyncClient, Finished, Tokens
from pbkv_cluster.client.store import StoreClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import DeadlineExceeded
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import WorkerEntry
from tests.cluster.scrape import scrape_all
from tests.integrations.vllm_worker.clusters import both_up, engine_of, entries, prompt
from tests.integrations.vllm_worker.conftest import PYTHON, settings
from tests.polling import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(700),
]

PREFIX = 640  # tokens; whole blocks of both engines
_LONG = 2000  # tokens of a step that is to be in the middle of them when its worker is killed
TOKENS = 24


@pytest.fixture(scope="module")
def cluster(model: Path) -> Iterator[LocalCluster]:
    flags = {"engine.type": "mixed", "vllm.workers": 1, "engine.gpu_blocks": 2048, "engine.host_blocks": 256}
    with LocalCluster(load(flags=settings(model, **flags)).config) as running:
        yield running


async def of_engine(cluster: LocalCluster, name: str) -> WorkerEntry:
    (entry,) = [each for each in await entries(cluster) if each.engine.partition(" ")[0] == name]
    return entry


async def on_both(client: AsyncClient, seed: int) -> dict[str, tuple[str, list[int]]]:
    """The tenant whose step each worker has run, and its output; both had the same prompt, with `PREFIX` tokens."""

    async def run(tenant: str, tokens: list[int]) -> tuple[str, tuple[str, list[int]]]:
        async with await client.start_workflow(tenant=tenant) as workflow:
            result = await workflow.run(agent="a", prompt=tokens, max_tokens=TOKENS, ignore_eos=True)
        return result.usage.worker_id, (tenant, list(result.token_ids))

    found = dict(await asyncio.gather(*(run(tenant, prompt(seed, PREFIX)) for tenant in ("one", "two"))))
    assert len(found) == 2, "the second step goes to the worker that is idle"
    return found


async def test_each_engines_steps_find_what_it_has_cached(cluster: LocalCluster) -> None:
    """And both engines give the same tokens."""
    async with AsyncClient(cluster.gateway_address) as client:
        await both_up(client)
        for seed in range(3):
            found = await on_both(client, seed)
            (_, output), (_, other) = found.values()
            assert output == other
            for home, (tenant, _) in found.items():
                longer = [*prompt(seed, PREFIX), *prompt(50 + seed, 40)]

                async def returns(longer: list[int] = longer, home: str = home, tenant: str = tenant) -> bool:
                    async with await client.start_workflow(tenant=tenant) as workflow:
                        usage = (await workflow.run(agent="b", prompt=longer, max_tokens=1)).usage
                    assert usage.available_tokens >= PREFIX
                    return usage.worker_id == home and usage.delivered == usage.captured == {Tier.GPU: PREFIX}

                await eventually(returns)


async def test_operators_see_which_worker_is_which(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = [await of_engine(cluster, name) for name in ("pbkv", "vllm")]
    assert (ours.host_blocks, theirs.host_blocks, ours.gpu_blocks) == (256, 0, 2048)
    assert ours.namespace.model == theirs.namespace.model
    assert ours.namespace != theirs.namespace, "nothing of one is a block of the other"
    async with AsyncClient(cluster.gateway_address) as client, StoreClient(cluster.gateway_address) as store:
        await both_up(client)
        found = await on_both(client, 10)
        tokens = prompt(10, PREFIX)
        listed = await store.list_cache()
        assert {entry.worker_id for entry in listed.entries} == {ours.worker_id}, "vLLM does not tell"
        tenant, _ = found[ours.worker_id]
        async with await client.start_workflow(tenant=tenant) as workflow:
            assert (await workflow.lease_blocks(tokens, lease_s=30)).leased_tokens == PREFIX
            assert (await workflow.prefetch(tokens)).resident_tokens == PREFIX
    for command in (["status", "--json", "-"], ["cache", "check"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            await asyncio.to_thread(main, [*command, "--endpoint", cluster.gateway_address])
        if command[0] == "status":
            workers = {each["worker_id"]: each for each in json.loads(capsys.readouterr().out)["workers"]}
    assert workers[ours.worker_id]["engine"] == "pbkv"
    assert workers[theirs.worker_id]["engine"] == theirs.engine
    assert workers[ours.worker_id]["tiers"].keys() == {"gpu", "host"}
    assert workers[theirs.worker_id]["tiers"].keys() == {"gpu"}
    scraped = scrape_all(cluster.discovery_url)
    for entry in (ours, theirs):
        metrics = scraped[entry.worker_id]
        assert metrics.value("pbkv_tier_capacity_bytes", tier="gpu") == entry.gpu_blocks * entry.block_bytes
        assert metrics.value("pbkv_engine_batches_total") > 0
    assert [name for name, metrics in scraped.items() if "pbkv_guard_lru_active" in metrics.families] == [ours.worker_id]


async def test_a_step_of_either_engine_can_be_cancelled_or_late(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client:
        await both_up(client)

        async def break_off(seed: int) -> str:
            async with await client.start_workflow() as workflow:
                stream = workflow.stream(agent="a", prompt=prompt(seed, 64), max_tokens=3900, ignore_eos=True)
                home = ""
                async for event in stream:
                    if isinstance(event, Accepted):
                        home = event.worker_id
                    if isinstance(event, Tokens):
                        break
                await stream.aclose()
            return home

        async def miss(seed: int) -> None:
            async with await client.start_workflow() as workflow:
                with pytest.raises(DeadlineExceeded):
                    await workflow.run(agent="a", prompt=prompt(seed, 64), max_tokens=3900, ignore_eos=True, timeout_s=0.3)

        homes = await asyncio.gather(break_off(20), break_off(21))
        assert len(set(homes)) == 2
        await asyncio.gather(miss(22), miss(23))

        async def none_runs() -> bool:
            return not any(worker.running + worker.waiting for worker in (await client.status()).workers)

        await eventually(none_runs)


@pytest.mark.parametrize(("victim", "seed"), [("pbkv", 30), ("vllm", 31)])
async def test_a_step_goes_on_at_the_other_engine(cluster: LocalCluster, victim: str, seed: int) -> None:
    """After the tokens that its client has. Of vLLM's worker, the actor is killed with the process: its engine ends, too."""
    async with AsyncClient(cluster.gateway_address) as client:
        await both_up(client)
        found = await on_both(client, seed)
        entry = await of_engine(cluster, victim)
        tenant, output = found[entry.worker_id]
        process = psutil.Process(entry.pid)
        killed = [process] if victim == "pbkv" else [process.parent(), process]
        engine = None if victim == "pbkv" else psutil.Process(engine_of(entry.pid))
        async with await client.start_workflow(tenant=tenant) as workflow:
            tokens: list[int] = []
            async for event in workflow.stream(agent="a", prompt=prompt(seed, PREFIX), max_tokens=_LONG, ignore_eos=True):
                if isinstance(event, Accepted):
                    assert event.worker_id == entry.worker_id
                if isinstance(event, Tokens):
                    tokens += event.token_ids
                if len(tokens) > 5 and killed:
                    for each in killed:
                        assert each is not None
                        os.kill(each.pid, signal.SIGKILL)
                    killed = []
                if isinstance(event, Finished):
                    assert event.usage.worker_id != entry.worker_id
        assert len(tokens) == _LONG
        assert tokens[:TOKENS] == output
        if engine is not None:
            await eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
        await both_up(client)
