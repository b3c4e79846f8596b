"""What is kept of an open workflow, from event to event."""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.situation import RECENT, RECENT_SITES, Situation
from pbkv_cluster.predictor_service.workload.recognition import Scores
from pbkv_cluster.predictor_service.workload.workload_model import Moment, WorkloadModel

_NONE = array("I")


class Seen(NamedTuple):
    """What a workflow has had of one agent: how many steps, and how long the latest was."""

    steps: int
    prompt_tokens: int
    output_tokens: int  # 0: it has not ended yet


_NEVER = Seen(0, 0, 0)


class PredictionState:
    """One workflow."""

    __slots__ = (
        "_horizon",
        "agents",
        "earlier",
        "evidence",
        "former_prompt_tokens",
        "graph",
        "held",
        "hidden",
        "labels",
        "latest",
        "model",
        "moments",
        "name",
        "number",
        "output_tokens",
        "own",
        "own_output_tokens",
        "own_prompt_tokens",
        "pieces",
        "prompt_tokens",
        "run",
        "seen",
        "sequence",
        "settled",
        "sites",
        "steps",
        "task",
        "walk",
        "whole",
        "words",
        "workload",
    )

    def __init__(self, horizon: int) -> None:
        self.name = ""  # of its workload, by the client
        self.workload = ""  # that it is taken for
        self.settled = False  # that is certain: what comes is learnt
        self.evidence: Scores | None = Scores()  # of the first steps, until there are enough of them
        self.held: list[WorkflowEvent] = []  # since the start, until it is settled
        self.model: WorkloadModel | None = None  # that `moments` and labels are of
        self.sequence = -1
        self.graph: StepGraph | None = None
        self.walk: GraphWalk | None = None  # place in the graph; lost events do not move it
        self.own: dict[str, str] = {}  # labels of agents that have none of their own
        self._horizon = horizon
        self.moments: list[list[Moment]] = []  # of as many of the latest steps: before and, if it is known, after the output
        self.whole: list[tuple[int, Moment]] = []  # all moments, and how many steps had begun
        self.labels: list[str] = []  # of all steps; both where an expert learns from whole workflows
        self.restart()

    def restart(self) -> None:
        """Forgets the steps: some are missing, or they were of another workload."""
        self.agents: tuple[str, ...] = ()  # of the latest steps
        self.seen: dict[str, Seen] = {}  # by the agents' labels
        self.run = 0
        self.steps = 0  # that have begun
        self.number = -1  # of the latest, as the gateway counts
        self.sites: tuple[str, ...] = ()  # of the latest steps
        # Of 32 bits: a tenth of the memory of tuples of numbers, and there are very many open workflows.
        self.pieces = self.task = self.words = self.earlier = _NONE
        self.hidden = b""
        self.prompt_tokens = self.former_prompt_tokens = self.output_tokens = 0
        self.own_prompt_tokens = self.own_output_tokens = 0
        self.moments.clear()
        self.latest: Moment | None = None  # of them; it is what is forecast
        self.whole = []
        self.labels = []

    def began(self, label: str, site: str, pieces: Sequence[int], prompt_tokens: int) -> None:
        """The next step has begun."""
        self.run = self.run + 1 if self.agents and self.agents[-1] == label else 1
        self.agents = (*self.agents, label)[-RECENT:]
        if self.model is not None and self.model.wants_whole:
            self.labels.append(label)
        former = self.seen.get(label, _NEVER)
        self.own_prompt_tokens, self.own_output_tokens = former.prompt_tokens, former.output_tokens
        self.seen[label] = Seen(former.steps + 1, prompt_tokens, 0)
        self.sites = (*self.sites, site)[-RECENT_SITES:]
        self.pieces = array("I", pieces)
        self.prompt_tokens, self.former_prompt_tokens = prompt_tokens, self.prompt_tokens

    def finished(self, event: WorkflowEvent) -> None:
        """A step has ended."""
        self.words, self.earlier = array("I", event.words), self.words
        self.hidden, self.output_tokens = event.hidden, event.output_tokens
        if self.agents and event.step == self.number:
            latest = self.agents[-1]
            self.seen[latest] = self.seen[latest]._replace(output_tokens=event.output_tokens)

    def situation(self, finished: bool) -> Situation:
        """What is known now."""
        latest = self.agents[-1] if self.agents else None
        return Situation(
            self.agents,
            self.steps,
            0 if latest is None else self.seen[latest].steps,
            self.run,
            self.sites,
            self.pieces,
            self.task,
            self.words,
            finished,
            self.hidden,
            self.graph,
            self.walk,
            self.prompt_tokens,
            self.former_prompt_tokens,
            self.output_tokens,
            self.earlier,
            self.own_prompt_tokens,
            self.own_output_tokens,
        )

    def remember(self, moment: Moment, new_step: bool) -> None:
        """Keeps a moment, to be told what came of it."""
        if new_step or not self.moments:
            self.moments.append([])
            del self.moments[: -self._horizon]
        self.moments[-1].append(moment)
        self.latest = moment
        if self.model is not None and self.model.wants_whole:
            self.whole.append((len(self.labels), moment))

    def waiting(self) -> Iterator[tuple[int, Moment]]:
        """The moments to which the next step means something, and which of their K steps it is, from 0."""
        for step, moments in enumerate(reversed(self.moments)):
            for moment in moments:
                yield step, moment
