"""What operators ask of a running cluster: why blocks lie where they do, whether the index is right, and a live view."""

import asyncio
import json
import os
import random
import signal
from typing import Any

import pytest
from textual.widgets import DataTable

from pbkv_cluster.cli.main import main
from pbkv_cluster.cli.top.app import TopApp
from pbkv_cluster.client import Client, Workflow
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.locations.residency import PACKED_BYTES, Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import Directory, connect
from tests.polling import eventually, wait_for

AGENTS = ("planner", "coder", "planner")


def pbkv(capsys: pytest.CaptureFixture[str], cluster: LocalCluster, *args: str, code: int = 0) -> Any:
    """The JSON that a command writes."""
    with pytest.raises(SystemExit) as ended:
        main([*args, "--endpoint", cluster.gateway_address, "--json", "-"])
    captured = capsys.readouterr()
    assert (ended.value.code or 0) == code, captured.err
    return json.loads(captured.out)


def take_steps(client: Client, name: str, seed: int) -> Workflow:
    """Opens a workflow, or goes on with it, by three steps whose prompts grow."""
    generator = random.Random(seed)
    context = [generator.randrange(5, 4000) for _ in range(200)]
    workflow = client.start_workflow(name, workload="operators")
    for agent in AGENTS:
        context += [generator.randrange(5, 4000) for _ in range(40)]
        context += workflow.run(agent=agent, prompt=context, max_tokens=4, ignore_eos=True).token_ids
    return workflow


def test_a_workflow_and_its_blocks_are_explained(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(cluster.gateway_address) as client:
        workflow = take_steps(client, "explained", 1)
        # The predictor hears of the workflow while it runs.
        wait_for(lambda: bool(pbkv(capsys, cluster, "explain", "explained")["expected"]), why=lambda: "nothing is expected")
        found = pbkv(capsys, cluster, "explain", "explained")
        assert found["path"] == list(AGENTS)
        assert found["workflow"]["workload"] == "operators"
        assert sum(found["expected"][0]["agents"].values()) == pytest.approx(1.0, abs=0.01)
        cached = sum(tokens for tiers in found["cached_tokens"].values() for tokens in tiers.values())
        assert cached >= 16 * (320 // 16)
        assert {run["last_decision"]["reason"] for run in found["runs"]} == {"compute"}
        assert all("explained" in decision["workflows"] for decision in found["decisions"])

        run = found["runs"][0]
        block = pbkv(capsys, cluster, "explain", run["name"][:16])
        assert block["block"] == run["name"]
        (cache,) = block["caches"]
        assert (cache["worker_id"], cache["run"]["workflows"]) == (run["worker_id"], ["explained"])
        assert [place["tier"] for place in cache["places"]] == ["gpu"]
        assert (block["decisions"][-1]["what"], block["decisions"][-1]["reason"]) == ("stored", "compute")

        prefetched = pbkv(capsys, cluster, "cache", "prefetch", "--workflow", "explained")
        assert prefetched["loaded_tokens"] == 0, "all of it is on a GPU"
        assert prefetched["resident_tokens"] == cached
        workflow.end()
    with pytest.raises(SystemExit) as ended:
        main(["explain", "explained", "--endpoint", cluster.gateway_address])
    assert ended.value.code == 1
    assert "neither an open workflow nor the beginning of a block key" in capsys.readouterr().err


def test_the_index_is_found_right_and_a_wrong_entry_is_named(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(cluster.gateway_address) as client:
        take_steps(client, "indexed", 2)
    index = pbkv(capsys, cluster, "cache", "check")["index"]
    assert index["indexed_blocks"] == index["held_blocks"] > 0
    assert index["differences"] == []

    async def forge() -> tuple[str, bytes]:
        """Enters a block that the first worker does not have."""
        redis = connect(cluster.redis_url)
        try:
            worker = (await Directory(redis, cluster.name, 10).workers())[0]
            (key,) = [each async for each in redis.scan_iter(f"*blocks:{worker.worker_id}:{worker.incarnation}")]
            packed = Residency(frozenset({Tier.HOST}), 0).pack()
            await redis.hset(key, b"\xab" * 16, packed.to_bytes(PACKED_BYTES, "little"))
            return worker.worker_id, key
        finally:
            await redis.aclose()

    async def mend(key: bytes) -> None:
        redis = connect(cluster.redis_url)
        await redis.hdel(key, b"\xab" * 16)
        await redis.aclose()

    worker_id, key = asyncio.run(forge())
    try:
        wrong = pbkv(capsys, cluster, "cache", "check", code=1)["index"]
    finally:
        asyncio.run(mend(key))
    assert wrong["differences"] == [{"worker_id": worker_id, "key": "ab" * 16, "problem": "unbacked"}]


async def test_top_shows_the_cluster_and_comes_back_with_it(cluster: LocalCluster) -> None:
    with Client(cluster.gateway_address) as client:
        watched = await asyncio.to_thread(take_steps, client, "watched", 3)
        another = await asyncio.to_thread(take_steps, client, "another", 4)
        app = TopApp(cluster.gateway_address, interval_s=0.1)
        async with app.run_test(size=(200, 50)) as pilot:

            def rows(table: str) -> list[list[str]]:
                shown = app.query_one(f"#{table}", DataTable)
                return [[str(cell) for cell in shown.get_row_at(row)] for row in range(shown.row_count)]

            def listed() -> list[str]:
                return [row[0] for row in rows("workflows") if row[0] in ("watched", "another")]

            await eventually(lambda: listed() == ["another", "watched"], 60)
            assert [row[0] for row in rows("workers")] == ["worker-0", "worker-1"]
            (row,) = [row for row in rows("workflows") if row[0] == "watched"]
            assert row[1:4] == ["operators", "3", "planner"]
            await eventually(lambda: any("%" in row[5] for row in rows("workflows")), 60)
            assert "open workflows" in str(app.query_one("#head").render())

            await pilot.press("s", "s", "s")
            assert app.order == "workload"
            await eventually(lambda: listed() == ["another", "watched"], 60)

            await pilot.press("p")
            seen = app.snapshot
            await asyncio.to_thread(another.end)
            assert app.paused
            await pilot.press("p")
            await eventually(lambda: app.snapshot is not seen and listed() == ["watched"], 60)

            gateway, before = (await asyncio.to_thread(cluster.pids))["gateway"], app.snapshot
            os.kill(gateway, signal.SIGKILL)
            await eventually(lambda: app.snapshot is not before and not app.problem and listed() == ["watched"], 120)
            await pilot.press("q")
        assert app.return_code == 0
        await asyncio.to_thread(watched.end)
