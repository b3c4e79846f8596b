"""Group chats with real text: prompts that grow, a router that reads, and a player that records what was said."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.requests import Message
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.simulator.replay.group_chat import GroupChats
from pbkv_cluster.simulator.workload import newsroom
from pbkv_cluster.simulator.workload.newsroom import MAX_TURNS, Turn
from tests.simulator.recording_gateway import SPOKEN_TEXT, RecordingGateway, serving

REPLIES = st.lists(st.sampled_from(("Bread is warm.", "But how, and why?", "")), min_size=MAX_TURNS, max_size=MAX_TURNS)


def play(number: int, replies: list[str]) -> list[tuple[str, list[Message]]]:
    """Each step's agent and prompt, if the agents say these words."""
    turns: list[Turn] = []
    steps = []
    for reply in replies:
        agent = newsroom.next_agent(turns)
        if agent is None:
            break
        turns.append(newsroom.request(agent, number))
        steps.append((agent, newsroom.messages(agent, newsroom.assignment(number), turns)))
        turns.append(Turn(agent, reply))
    assert newsroom.next_agent(turns) is None
    return steps


@given(st.integers(0, 200), REPLIES)
def test_each_prompt_of_an_agent_begins_with_its_last_one_and_its_reply(number: int, replies: list[str]) -> None:
    latest: dict[str, list[Message]] = {}
    for position, (agent, prompt) in enumerate(play(number, replies)):
        before = latest.get(agent, [])
        assert prompt[: len(before)] == before
        latest[agent] = [*prompt, {"role": "assistant", "content": replies[position]}]


def test_all_workflows_share_the_beginning_of_an_agents_prompt() -> None:
    ((_, one), *_), ((_, other), *_) = play(0, ["Yes."] * MAX_TURNS), play(1, ["Yes."] * MAX_TURNS)
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_what_was_said_decides_who_speaks_next() -> None:
    plain = [agent for agent, _ in play(0, ["Bread is warm."] * MAX_TURNS)]
    doubtful = [agent for agent, _ in play(0, ["But how?"] * MAX_TURNS)]
    assert plain[:3] == ["editor", "researcher", "writer"]
    assert doubtful[:3] == ["editor", "researcher", "critic"]
    assert plain[-1] == doubtful[-1] == "proofreader"


async def test_chats_are_played_and_what_was_said_is_kept() -> None:
    gateway = RecordingGateway()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with serving(gateway) as address, AsyncClient(address) as client:
        chats = GroupChats(client, concurrency=2, max_tokens=40, sleep=sleep)
        report = await chats.run(3, first=5)
    assert sorted(chat.number for chat in chats.chats) == [5, 6, 7]
    assert report.completed == 3
    assert gateway.most_open == 2
    for chat in chats.chats:
        spoken = [turn for turn in chat.turns if turn.speaker not in ("chair", "search")]
        assert {turn.text for turn in spoken} == {"".join(SPOKEN_TEXT)}
        assert [turn.speaker for turn in spoken][-1] == "proofreader"
    assert report.meter.steps == sum(len(steps) for steps in gateway.steps.values())
    assert len(slept) == sum(turn.speaker == "search" for chat in chats.chats for turn in chat.turns) > 0
    for steps in gateway.steps.values():
        assert [step.sampling.max_tokens for step in steps] == [40] * len(steps)
        assert len({step.sampling.seed for step in steps}) == len(steps)


async def test_a_failed_step_ends_its_chat_and_no_other() -> None:
    gateway = RecordingGateway()
    gateway.failures["#0", "1"] = ResourceExhausted("no room")
    async with serving(gateway) as address, AsyncClient(address) as client:
        chats = GroupChats(client, concurrency=1, max_tokens=4, sleep=_no_sleep)
        report = await chats.run(2)
    assert [failure.error for failure in report.failures] == ["no room"]
    assert [chat.number for chat in chats.chats] == [1]


async def _no_sleep(seconds: float) -> None:
    pass
