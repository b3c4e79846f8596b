"""Agent applications for the workflow generator: their agents, which agent may follow which, and the tools called between."""

from collections.abc import Mapping
from dataclasses import dataclass, field

END = "END"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a workflow waits for. Its result is part of the next agent's prompt."""

    name: str
    median_s: float
    result: float = 1.0  # relative size of the result


@dataclass(frozen=True, slots=True)
class Edge:
    """A transition from an agent, drawn in proportion to its weight."""

    to: str  # an agent, or END
    weight: float
    retry: bool = False  # more likely in a difficult workflow
    tool: Tool | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent. Sizes are relative to those of other agents."""

    edges: tuple[Edge, ...]
    system: float = 1.0
    output: float = 1.0


@dataclass(frozen=True, slots=True)
class Application:
    """A graph of agents."""

    name: str
    start: str
    agents: Mapping[str, Agent] = field(hash=False)
    group: bool = False  # every agent hears every reply, not only the one that is called next


_EDIT = Tool("edit_file", 0.5, 0.4)
_TESTS = Tool("run_tests", 8.0, 1.5)
_SEARCH = Tool("web_search", 2.0, 1.2)
_FETCH = Tool("fetch_page", 3.0, 2.0)
_PYTHON = Tool("run_python", 4.0, 0.6)
_CUSTOMER = Tool("customer_reply", 30.0, 0.4)
_LOOKUP = Tool("lookup_account", 0.5, 0.8)
_DIAGNOSE = Tool("run_diagnostics", 6.0, 1.2)

CODING = Application(
    "coding",
    "planner",
    {
        "planner": Agent((Edge("coder", 1.0),), system=0.8),
        "coder": Agent((Edge("coder", 0.35, tool=_EDIT), Edge("tester", 0.65, tool=_EDIT)), system=1.2, output=1.5),
        "tester": Agent(
            (
                Edge("coder", 0.45, retry=True, tool=_TESTS),
                Edge("tester", 0.10, tool=_TESTS),
                Edge("reviewer", 0.45, tool=_TESTS),
            ),
            output=0.8,
        ),
        "reviewer": Agent((Edge("coder", 0.3, retry=True), Edge("planner", 0.1, retry=True), Edge(END, 0.6))),
    },
)

RESEARCH = Application(
    "research",
    "supervisor",
    {
        "supervisor": Agent(
            (
                Edge("searcher", 0.35, retry=True),
                Edge("reader", 0.25, retry=True),
                Edge("analyst", 0.2, retry=True),
                Edge("writer", 0.2),
            ),
            system=1.2,
            output=0.6,
        ),
        "searcher": Agent((Edge("searcher", 0.4, tool=_SEARCH), Edge("supervisor", 0.6, tool=_SEARCH)), system=0.8),
        "reader": Agent((Edge("reader", 0.45, tool=_FETCH), Edge("supervisor", 0.55)), system=0.8),
        "analyst": Agent((Edge("analyst", 0.2, tool=_PYTHON), Edge("supervisor", 0.8))),
        "writer": Agent((Edge("critic", 0.6), Edge(END, 0.4)), output=1.6),
        "critic": Agent((Edge("writer", 0.35, retry=True), Edge("supervisor", 0.25, retry=True), Edge(END, 0.4))),
    },
)

SUPPORT = Application(
    "support",
    "triage",
    {
        "triage": Agent((Edge("billing", 0.4), Edge("technical", 0.4), Edge("account", 0.2)), output=0.5),
        "billing": Agent(
            (
                Edge("billing", 0.45, retry=True, tool=_CUSTOMER),
                Edge("billing", 0.2, tool=_LOOKUP),
                Edge("escalation", 0.1, retry=True),
                Edge(END, 0.25),
            ),
            system=1.2,
        ),
        "technical": Agent(
            (
                Edge("technical", 0.4, retry=True, tool=_CUSTOMER),
                Edge("technical", 0.2, tool=_DIAGNOSE),
                Edge("escalation", 0.15, retry=True),
                Edge(END, 0.25),
            ),
            system=1.4,
        ),
        "account": Agent(
            (Edge("account", 0.3, retry=True, tool=_CUSTOMER), Edge("account", 0.2, tool=_LOOKUP), Edge(END, 0.5)), system=0.8
        ),
        "escalation": Agent((Edge("technical", 0.3, retry=True), Edge("billing", 0.2, retry=True), Edge(END, 0.5))),
    },
)

# Four agents who hand work round in a circle, and sometimes back: LRU has evicted an agent's context when its turn comes again.
REVIEW = Application(
    "review",
    "planner",
    {
        "planner": Agent((Edge("author", 1.0),)),
        "author": Agent((Edge("reviewer", 0.85), Edge("author", 0.15, tool=_EDIT)), output=1.5),
        "reviewer": Agent((Edge("tester", 0.8), Edge("author", 0.2, retry=True))),
        "tester": Agent(
            (Edge("planner", 0.75, tool=_TESTS), Edge("author", 0.1, retry=True, tool=_TESTS), Edge(END, 0.15)),
        ),
    },
)

APPLICATIONS: tuple[Application, ...] = (CODING, RESEARCH, SUPPORT)
