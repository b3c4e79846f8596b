"""Planner, writer with a tool, critic: an AutoGen group chat that knows only OpenAI's API. Prints who spoke."""

import asyncio
import os
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMentionTermination
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage, ToolCallRequestEvent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient


async def search(query: str) -> str:
    """Finds facts."""
    return f"Facts about {query}: they sing."


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=os.environ["MODEL"],
        max_tokens=200,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "family": "unknown",
            "structured_output": False,
        },
    )
    stream = "--stream" in sys.argv
    team = RoundRobinGroupChat(
        [
            AssistantAgent("planner", client, system_message="You are the planner.", model_client_stream=stream),
            AssistantAgent(
                "writer",
                client,
                system_message="You are the writer.",
                tools=[search],
                reflect_on_tool_use=True,
                model_client_stream=stream,
            ),
            AssistantAgent("critic", client, system_message="You are the critic.", model_client_stream=stream),
        ],
        termination_condition=TextMentionTermination("APPROVED"),
        max_turns=12,
    )
    async for message in team.run_stream(task=os.environ["TASK"]):
        if isinstance(message, ModelClientStreamingChunkEvent):
            continue
        if isinstance(message, TextMessage | ToolCallRequestEvent) and message.source != "user":
            print(message.source)
    await client.close()


asyncio.run(main())
