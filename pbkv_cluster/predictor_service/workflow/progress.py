"""The steps of an open workflow so far, as much of them as forecasts need."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.situation import RECENT, RECENT_CALL_SITES, Situation

_NONE = array("I")


class AgentSteps(NamedTuple):
    """What one agent has done in a workflow: its steps so far, and the lengths of the latest one."""

    steps: int
    prompt_tokens: int
    output_tokens: int  # 0: it has not finished yet


_NO_STEPS = AgentSteps(0, 0, 0)


class Progress:
    """Updated by each event of a workflow; `situation` gives what the experts read."""

    __slots__ = (
        "_agent_output_tokens",
        "_agent_prompt_tokens",
        "_by_agent",
        "_call_sites",
        "_graph",
        "_hidden",
        "_output_tokens",
        "_pieces",
        "_previous_prompt_tokens",
        "_previous_words",
        "_prompt_tokens",
        "_run",
        "_task",
        "_walk",
        "_words",
        "agents",
        "latest_step",
        "steps",
    )

    def __init__(self) -> None:
        self._graph: StepGraph | None = None
        self._walk: GraphWalk | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets the steps, because some are missing or their labels were another workload's. The place in the graph stays."""
        self.agents: tuple[str, ...] = ()  # labels of the latest steps
        self.steps = 0  # started so far
        self.latest_step = -1  # number of the latest step, as the gateway counts
        self._by_agent: dict[str, AgentSteps] = {}  # by label
        self._run = 0
        self._call_sites: tuple[str, ...] = ()
        # Arrays of 32 bits take a tenth of the memory of tuples of numbers, and very many workflows are open.
        self._pieces = self._task = self._words = self._previous_words = _NONE
        self._hidden = b""
        self._prompt_tokens = self._previous_prompt_tokens = self._output_tokens = 0
        self._agent_prompt_tokens = self._agent_output_tokens = 0

    def declare(self, graph: StepGraph | None) -> None:
        """Sets the step graph; none of its steps has run yet."""
        self._graph = graph
        self._walk = None if graph is None else GraphWalk.of(graph)

    def start_step(self, event: WorkflowEvent) -> None:
        """Counts a step that has started, and moves in the graph."""
        self.latest_step, self.steps = event.step, event.step + 1
        if self._walk is not None:
            self._walk = self._walk.after(event.agent)

    def describe_step(self, label: str, event: WorkflowEvent, pieces: Sequence[int]) -> None:
        """Adds what is known of the step just started, once its agent has a label.

        Args:
            label: of its agent.
            event: its start.
            pieces: of its prompt that other workflows have had too.
        """
        self._run = self._run + 1 if self.agents and self.agents[-1] == label else 1
        self.agents = (*self.agents, label)[-RECENT:]
        previous = self._by_agent.get(label, _NO_STEPS)
        self._agent_prompt_tokens, self._agent_output_tokens = previous.prompt_tokens, previous.output_tokens
        self._by_agent[label] = AgentSteps(previous.steps + 1, event.prompt_tokens, 0)
        self._call_sites = (*self._call_sites, event.call_site)[-RECENT_CALL_SITES:]
        if event.words:
            self._task = array("I", event.words)
        self._pieces = array("I", pieces)
        self._prompt_tokens, self._previous_prompt_tokens = event.prompt_tokens, self._prompt_tokens

    def finish_step(self, event: WorkflowEvent) -> None:
        """Adds the output of a step, the latest one or one of a parallel branch."""
        self._words, self._previous_words = array("I", event.words), self._words
        self._hidden, self._output_tokens = event.hidden, event.output_tokens
        if self.agents and event.step == self.latest_step:
            label = self.agents[-1]
            self._by_agent[label] = self._by_agent[label]._replace(output_tokens=event.output_tokens)

    def situation(self, finished: bool) -> Situation:
        """What is known now.

        Args:
            finished: whether the latest step has finished.
        """
        return Situation(
            self.agents,
            self.steps,
            self._by_agent[self.agents[-1]].steps if self.agents else 0,
            self._run,
            self._call_sites,
            self._pieces,
            self._task,
            self._words,
            finished,
            self._hidden,
            self._graph,
            self._walk,
            self._prompt_tokens,
            self._previous_prompt_tokens,
            self._output_tokens,
            self._previous_words,
            self._agent_prompt_tokens,
            self._agent_output_tokens,
        )
