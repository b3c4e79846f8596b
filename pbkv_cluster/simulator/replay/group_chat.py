"""Plays group chats of the newsroom on a cluster: what agents say is generated, and decides who speaks next."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from pbkv_cluster.client import AsyncClient, AsyncWorkflow
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.simulator.replay.measurement import Measurement
from pbkv_cluster.simulator.replay.report import ReplayReport
from pbkv_cluster.simulator.workload import newsroom
from pbkv_cluster.simulator.workload.newsroom import Turn

SEARCH_S = 2.0  # how long the researcher waits for a search
TEMPERATURE = 0.7  # without it a model this small repeats itself


@dataclass(frozen=True, slots=True)
class Chat:
    """One group chat."""

    number: int
    assignment: str
    turns: tuple[Turn, ...]


class GroupChats:
    """Plays chats in a closed loop, a fixed number at a time. A failed step ends its chat, and the others go on."""

    def __init__(
        self,
        client: AsyncClient,
        concurrency: int,
        max_tokens: int,
        on_step: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Args:
        client: of the cluster's gateway.
        concurrency: chats at a time.
        max_tokens: longest turn.
        on_step: called after each turn.
        clock: times the chats.
        sleep: waits some seconds.
        """
        self._client = client
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._on_step = on_step
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._measured = Measurement()
        self.chats: list[Chat] = []  # that were completed, in the order of their ends

    async def run(self, count: int, first: int = 0) -> ReplayReport:
        """Plays `count` chats, those with the numbers from `first` on, and reports."""
        started = self._clock.now()
        numbers = iter(range(first, first + count))
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._drain(numbers))
        return self._measured.report(self._clock.now() - started)

    async def _drain(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            started = self._clock.now()
            turns: list[Turn] = []
            try:
                async with await self._client.start_workflow(workload=newsroom.WORKLOAD) as workflow:
                    await self._play(workflow, number, turns)
            except PbkvError as error:
                self._measured.failure(f"chat {number}", len(turns), str(error))
                continue
            self._measured.workflow(self._clock.now() - started)
            self.chats.append(Chat(number, newsroom.assignment(number), tuple(turns)))

    async def _play(self, workflow: AsyncWorkflow, number: int, turns: list[Turn]) -> None:
        task = newsroom.assignment(number)
        while (agent := newsroom.next_agent(turns)) is not None:
            if agent == "researcher":
                async with workflow.tool("search"):
                    await self._sleep(SEARCH_S)
                turns.append(newsroom.finding(number, len(turns)))
            turns.append(newsroom.request(agent, number))
            result = await workflow.run(
                agent=agent,
                prompt=newsroom.messages(agent, task, turns),
                max_tokens=self._max_tokens,
                temperature=TEMPERATURE,
                seed=number << 16 | len(turns),  # the same chat draws the same words in every run
            )
            turns.append(Turn(agent, " ".join(result.text.split()) or "(says nothing)"))
            self._measured.step(result.usage)
            self._on_step()
