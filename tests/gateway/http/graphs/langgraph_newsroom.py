"""Planner, writer with a tool, critic: a LangGraph graph that knows only OpenAI's API. Prints each node that ran."""

import os
import sys
from typing import Any

from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode


@tool
def search(query: str) -> str:
    """Finds facts."""
    return f"Facts about {query}: they sing."


llm = ChatOpenAI(model=os.environ["MODEL"], max_tokens=200, streaming="--stream" in sys.argv)
writer_llm = llm.bind_tools([search])


def planner(state: MessagesState) -> dict[str, Any]:
    return {"messages": [llm.invoke([SystemMessage("You are the planner."), *state["messages"]])]}


def writer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [writer_llm.invoke([SystemMessage("You are the writer."), *state["messages"]])]}


def critic(state: MessagesState) -> dict[str, Any]:
    return {"messages": [llm.invoke([SystemMessage("You are the critic."), *state["messages"]])]}


def after_writer(state: MessagesState) -> str:
    return "tools" if getattr(state["messages"][-1], "tool_calls", None) else "critic"


def after_critic(state: MessagesState) -> str:
    return END if "APPROVED" in str(state["messages"][-1].content) else "writer"


graph = StateGraph(MessagesState)
graph.add_node("planner", planner)
graph.add_node("writer", writer)
graph.add_node("critic", critic)
graph.add_node("tools", ToolNode([search]))
graph.add_edge(START, "planner")
graph.add_edge("planner", "writer")
graph.add_conditional_edges("writer", after_writer)
graph.add_edge("tools", "writer")
graph.add_conditional_edges("critic", after_critic)

for update in graph.compile().stream({"messages": [("user", os.environ["TASK"])]}, stream_mode="updates"):
    for node in update:
        if node != "tools":
            print(node)
