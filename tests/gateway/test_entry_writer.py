"""Entries of workflows: look-ups do not wait for each other, nor for writes, and find nothing that has ended."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from tests.gateway.rig import PATIENCE_S, until


@dataclass
class HangingDirectory:
    """Answers when it is told to."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    removed: int = 0

    async def workflow(self, workflow_id: str) -> None:
        self.asked += 1
        await self.go.wait()

    async def remove_workflow(self, workflow_id: str, holder: object) -> None:
        self.removed += 1
        await self.go.wait()


def writer(directory: Any) -> EntryWriter:
    return EntryWriter(directory, Peers("gateway"), Decisions(), ManualClock(0.0), capacity=8)


async def test_look_ups_in_a_directory_that_hangs_wait_side_by_side() -> None:
    directory = HangingDirectory()
    entries = writer(directory)
    finding = [asyncio.ensure_future(entries.find(f"w{number}")) for number in range(20)]
    await until(lambda: directory.asked == 20, "all are asked for")
    directory.go.set()
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*finding, return_exceptions=True)
    assert all(isinstance(each, NotFound) for each in found)


async def test_a_workflow_whose_removal_is_in_flight_is_not_looked_up() -> None:
    directory = HangingDirectory()
    entries = writer(directory)
    ended = OpenWorkflow("w", "app", "", 60.0, 0.0, 0.0)
    ended.ended = True
    writing = asyncio.ensure_future(entries.write(ended))
    await until(lambda: directory.removed == 1, "the removal is in flight")
    with pytest.raises(NotFound):
        await entries.find("w")
    assert directory.asked == 0
    directory.go.set()
    await writing
