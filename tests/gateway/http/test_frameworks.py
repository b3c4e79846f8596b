"""Graphs of agents in frameworks that know only OpenAI's API: their agents and their order come out right.

The graphs run in an environment of their own, with no code of ours: `make test-frameworks` makes it.
"""

import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from tests.gateway.http.http_rig import MODEL, HttpRig, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import until

GRAPHS = Path(__file__).parent / "graphs"
TASK = "Write an article about the songs of whales."
TIMEOUT_S = 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PBKV_FRAMEWORKS_PYTHON" not in os.environ, reason="needs frameworks: make test-frameworks"),
]


def say(prompt: str) -> str:
    """What a model that follows its instructions would say."""
    drafts = len(re.findall(r"Draft \d", prompt))
    if "You are the planner" in prompt:
        call = '<tool_call>\n{"name": "transfer_to_writer", "arguments": {}}\n</tool_call>'
        return call if "transfer_to_writer" in prompt else f"Plan {drafts}: first the song, then the singers."
    if "You are the critic" in prompt:
        return "APPROVED, print it." if drafts > 1 else "Tell us more about the singers."
    asked = prompt.count('"name": "search", "arguments"')
    if '"name": "search"' in prompt and not asked:
        return '<tool_call>\n{"name": "search", "arguments": {"query": "whales"}}\n</tool_call>'
    return f"Draft {drafts + 1}: whales sing."


async def run_graph(http: HttpRig, script: str, *arguments: str) -> list[str]:
    """Runs a graph in the frameworks' environment; returns the agents that it says have run."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        os.environ["PBKV_FRAMEWORKS_PYTHON"],
        str(GRAPHS / script),
        *arguments,
        env={**environment, "OPENAI_BASE_URL": f"{http.url}/v1", "OPENAI_API_KEY": "none", "MODEL": MODEL, "TASK": TASK},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=GRAPHS.anchor,
    )
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0, err.decode()[-4000:]
    return out.decode().split()


@asynccontextmanager
async def newsroom() -> AsyncIterator[HttpRig]:
    async with http_running(ScriptedWorker("w0", say=say)) as http:
        yield http


async def steps_of(http: HttpRig, agents: list[str]) -> dict[str, list[WorkflowEvent]]:
    """Started steps by workflow, once there are as many as the graphs have told of."""
    await http.rig.sees(lambda status: status.totals.steps == len(agents), f"{len(agents)} steps")

    def heard() -> int:
        return sum(event.kind is EventKind.STEP_STARTED for event in http.predictor.events)

    await until(lambda: heard() >= len(agents), f"the predictor is told of {len(agents)} steps")
    workflows = {event.workflow for event in http.predictor.events}
    return {workflow: await http.events(workflow, EventKind.STEP_STARTED) for workflow in workflows}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("script", ["langgraph_newsroom.py", "autogen_newsroom.py", "agents_newsroom.py"])
async def test_agents_and_their_order_come_out_right(script: str, stream: bool) -> None:
    async with newsroom() as http:
        runs = [await run_graph(http, script, *(["--stream"] if stream else [])) for _ in range(2)]
        assert runs[0] == runs[1]
        assert len(runs[0]) >= 3, runs[0]
        found = await steps_of(http, [*runs[0], *runs[1]])
        assert len(found) == 2, f"two runs are two workflows: {found}"
        names: dict[str, set[str]] = {}
        for steps in found.values():
            assert len(steps) == len(runs[0])
            for told, step in zip(runs[0], steps, strict=True):
                names.setdefault(told, set()).add(step.agent)
        assert all(len(agents) == 1 for agents in names.values()), f"an agent has one name in all runs: {names}"
        assert len({name for agents in names.values() for name in agents}) == len(names)
        for workflow in found:
            tools = await http.events(workflow, EventKind.TOOL_STARTED, EventKind.TOOL_FINISHED, least=2)
            kinds = Counter(event.kind for event in tools)
            assert kinds[EventKind.TOOL_STARTED] == kinds[EventKind.TOOL_FINISHED]
            assert "search" in {event.tool for event in tools}


def test_the_graphs_hold_no_code_of_ours() -> None:
    for graph in GRAPHS.glob("*.py"):
        assert "pbkv" not in graph.read_text().lower(), graph
    assert os.environ["PBKV_FRAMEWORKS_PYTHON"] != sys.executable
