"""Planner that hands over to a writer with a tool: OpenAI's Agents SDK, over its Responses API. Prints who answered."""

import asyncio
import os
import sys

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled


@function_tool
def search(query: str) -> str:
    """Finds facts."""
    return f"Facts about {query}: they sing."


async def main() -> None:
    set_tracing_disabled(True)
    settings = ModelSettings(max_tokens=200)
    model = os.environ["MODEL"]
    writer = Agent(name="writer", instructions="You are the writer.", tools=[search], model=model, model_settings=settings)
    planner = Agent(
        name="planner", instructions="You are the planner.", handoffs=[writer], model=model, model_settings=settings
    )
    if "--stream" in sys.argv:
        result = Runner.run_streamed(planner, os.environ["TASK"])
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(planner, os.environ["TASK"])
    agents = {"planner": planner, "writer": writer}
    for response in result.raw_responses:
        handed_over = any(getattr(item, "name", "") == "transfer_to_writer" for item in response.output)
        print("planner" if handed_over else "writer")
    assert result.last_agent.name in agents
    assert "Draft" in str(result.final_output), result.final_output


asyncio.run(main())
