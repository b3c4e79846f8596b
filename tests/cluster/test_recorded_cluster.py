"""A recording of a real cluster shares between prompts what the cluster's usage records said."""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.recording.cluster import ClusterRecording
from pbkv_cluster.simulator.recording.ids import keyed_ids
from pbkv_cluster.simulator.recording.known_blocks import KnownBlocks
from pbkv_cluster.simulator.recording.recorder import Recorder
from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.check import TraceCheck
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

WORKFLOWS, STEPS = 3, 4


async def play(client: AsyncClient, usages: dict[str, list[Usage]], system: list[int], draws: random.Random) -> None:
    """Workflows one after the other, of two agents whose prompts grow; the reply comes back in the next prompt."""
    for number in range(WORKFLOWS):
        contexts = {agent: [*system, *draws.choices(range(100, 900), k=9)] for agent in ("writer", "critic")}
        async with await client.start_workflow(workload="recorded", workflow_id=f"recorded-{number}") as workflow:
            for at in range(STEPS):
                agent = ("writer", "critic")[at % 2]
                forced = pack(draws.choices(range(100, 900), k=21))
                result = await workflow.run(
                    agent=agent, prompt=pack(contexts[agent]), max_tokens=21, forced_output=forced, call_site="turn"
                )
                usages.setdefault(workflow.id, []).append(result.usage)
                contexts[agent] += [*result.token_ids, *draws.choices(range(100, 900), k=30)]
                async with workflow.tool("search"):
                    pass


async def record(cluster: LocalCluster, path: Path, with_token_ids: bool) -> dict[str, list[Usage]]:
    usages: dict[str, list[Usage]] = {}
    draws = random.Random(str(path))
    with TraceFile(path, 1 << 24) as file:
        recorder = Recorder(file)
        recording = ClusterRecording(recorder, KnownBlocks(keyed_ids()), keyed_ids())
        async with InspectionClient(cluster.gateway_address) as inspection, AsyncClient(cluster.gateway_address) as client:
            events = await inspection.watch(with_token_ids)
            playing = asyncio.create_task(play(client, usages, draws.choices(range(100, 900), k=70), draws))
            async for event in events:
                recording.add(event)
                if recorder.written == WORKFLOWS:
                    break
            await playing
    return usages


def test_a_recording_replays_with_the_reuse_of_the_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl.gz"
    usages = asyncio.run(asyncio.wait_for(record(cluster, path, with_token_ids=False), 120))
    assert list(TraceCheck(path).problems()) == []
    trace = load_trace(path)
    assert [each.id for each in trace.workflows] == list(usages)
    assert {each.workload for each in trace.workflows} == {"recorded"}
    assert [step.agent for step in trace.workflows[0].steps] == ["writer", "critic", "writer", "critic"]
    assert [(step.tool, step.call_site) for step in trace.workflows[0].steps] == [("search", "turn")] * STEPS
    # One after the other, as they ran: in virtual time their steps would overlap where a cost model is slower than the cluster.
    tokens = TokenSource(
        make_workload([replace(trace, starts_at=tuple(1e3 * at for at in range(WORKFLOWS)))], Mix(think_scale=0), 0)
    )
    result = simulate(tokens, Setup(gpu_blocks=2000))
    found = {(each.arrival, each.position): each.available_tokens for each in result.steps}
    said = {
        (at, position): usage.available_tokens for at, name in enumerate(usages) for position, usage in enumerate(usages[name])
    }
    assert found == said
    assert sum(said.values()) > 0
    assert [step.prompt_tokens for each in trace.workflows for step in each.steps] == [
        usage.prompt_tokens for name in usages for usage in usages[name]
    ]


def test_token_ids_are_recorded_only_if_asked(cluster: LocalCluster, tmp_path: Path) -> None:
    for with_token_ids in (False, True):
        path = tmp_path / f"{with_token_ids}.jsonl"
        asyncio.run(asyncio.wait_for(record(cluster, path, with_token_ids), 120))
        for line in map(json.loads, path.read_text().splitlines()):
            assert ("prompt_token_ids" in line) == ("output_token_ids" in line) == with_token_ids
            if with_token_ids:
                assert len(line["prompt_token_ids"]) == line["prompt_tokens"]
                assert len(line["output_token_ids"]) == line["output_tokens"]
            assert line["delivered_tokens"] <= line["available_tokens"] <= line["prompt_tokens"]
