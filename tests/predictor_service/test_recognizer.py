"""The state machine of recognition: events in, decisions out."""

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.workload.evidence import STEPS
from pbkv_cluster.predictor_service.workload.recognizer import Decision, Recognition, RecognitionState, Recognizer
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel
from pbkv_cluster.predictor_service.workload.workloads import Workloads
from tests.predictor_service.applications import application, task

UNKNOWN, GUESSED, SETTLED = RecognitionState.UNKNOWN, RecognitionState.GUESSED, RecognitionState.SETTLED


class Machine:
    """A recognizer, and the events of one workflow at a time."""

    def __init__(self, max_workloads: int = 8, max_buffered: int = 48) -> None:
        self.workloads = Workloads(lambda: WorkloadModel(PredictorConfig(), ["markov"]), max_workloads)
        self.recognizer = Recognizer(self.workloads, max_buffered)
        self.learning = True
        self.start()

    def start(self) -> Recognition:
        self.recognition, self.events = Recognition(), list[WorkflowEvent]()
        return self.recognition

    def send(self, kind: EventKind, name: str = "", agent: str = "", app: str = "", step: int = 0) -> Decision:
        number = len(self.events)
        pieces = application(app) + task(f"{app} {id(self.recognition)}") if app else ()
        self.events.append(WorkflowEvent(kind, "w", number, 0.0, name, agent, step=step, pieces=pieces))
        return self.recognizer.receive(self.recognition, self.events[-1], self.learning)

    def step(self, app: str, step: int = 0, name: str = "", agent: str = "assistant") -> Decision:
        return self.send(EventKind.STEP_STARTED, name, agent, app, step)

    def run(self, app: str, name: str = "", steps: int = STEPS) -> str:
        """A whole workflow. Returns its workload."""
        recognition = self.start()
        for step in range(steps):
            self.step(app, step, name)
        self.send(EventKind.WORKFLOW_ENDED, name)
        return recognition.workload_name

    def seen(self) -> tuple[RecognitionState, str]:
        return self.recognition.state, self.recognition.workload_name


@pytest.fixture
def machine() -> Machine:
    """It knows the applications "one" and "two" by these names."""
    machine = Machine()
    for _ in range(6):
        for app in ("one", "two"):
            assert machine.run(app, name=app) == app
    machine.start()
    return machine


def test_a_workload_that_the_client_names_is_settled_at_once(machine: Machine) -> None:
    decision = machine.step("one", name="one")
    assert machine.seen() == (SETTLED, "one")
    assert decision == Decision(True, [machine.events[0]])
    assert machine.step("one", 1, name="one") == Decision(False, [machine.events[1]])
    assert not machine.recognition.buffer


def test_a_name_that_comes_later_applies_the_earlier_events_again(machine: Machine) -> None:
    machine.send(EventKind.WORKFLOW_STARTED)
    assert machine.seen() == (UNKNOWN, "")
    assert machine.step("one", name="two") == Decision(True, machine.events)
    assert machine.seen() == (SETTLED, "two"), "whatever the prompt looks like"


def test_a_workflow_without_a_name_is_guessed_and_settled_after_its_first_steps(machine: Machine) -> None:
    assert machine.send(EventKind.WORKFLOW_STARTED) == Decision(False, machine.events)
    assert machine.step("two") == Decision(True, machine.events), "the start is applied again, to the guess"
    assert machine.seen() == (GUESSED, "two")
    assert machine.step("two", 1) == Decision(False, machine.events[-1:])
    assert machine.step("two", 2) == Decision(True, machine.events)
    assert machine.seen() == (SETTLED, "two")
    assert machine.recognition.evidence is None


def test_a_guess_is_withdrawn_when_it_fits_no_more(machine: Machine) -> None:
    for _ in range(40):  # the more are known, the more a missing template tells
        machine.run("one", name="one")
    machine.start()
    machine.step("one")
    assert machine.seen() == (GUESSED, "one")
    assert machine.step("new", 1, agent="another") == Decision(True, machine.events)
    assert machine.seen() == (UNKNOWN, "")
    machine.step("new", 2, agent="another")
    assert machine.seen() == (SETTLED, "unnamed-1")
    assert list(machine.workloads.unnamed) == ["unnamed-1"]


def test_a_short_workflow_is_settled_by_its_end(machine: Machine) -> None:
    machine.step("one")
    assert machine.send(EventKind.WORKFLOW_ENDED) == Decision(True, machine.events)
    assert machine.seen() == (SETTLED, "one")


def test_a_workflow_without_steps_is_never_settled(machine: Machine) -> None:
    machine.send(EventKind.WORKFLOW_STARTED)
    assert machine.send(EventKind.WORKFLOW_ENDED) == Decision(False, [])
    assert machine.seen() == (UNKNOWN, "")


def test_the_buffer_is_bounded() -> None:
    machine = Machine(max_buffered=5)
    machine.step("one")
    for _ in range(4):
        assert machine.send(EventKind.TOOL_STARTED) == Decision(False, machine.events[-1:])
    assert machine.send(EventKind.TOOL_STARTED) == Decision(True, machine.events)
    assert machine.seen() == (SETTLED, "unnamed-1")
    machine.start()
    for _ in range(6):
        machine.send(EventKind.TOOL_STARTED)
    assert machine.seen() == (UNKNOWN, "")
    assert machine.recognition.buffer == [], "no step has started: the events are of no use"


def test_without_learning_no_workload_is_opened(machine: Machine) -> None:
    machine.learning = False
    before = machine.workloads.profiles.dump()
    for step in range(STEPS):
        machine.step("new", step, agent="another")
    assert machine.seen() == (SETTLED, "")
    assert machine.run("one") == "one"
    assert machine.workloads.profiles.dump() == before


def test_an_unnamed_workload_takes_the_name_that_a_client_gives_a_settled_workflow() -> None:
    machine = Machine()
    assert [machine.run("one") for _ in range(3)] == ["unnamed-1"] * 3
    machine.start()
    for step in range(STEPS):
        machine.step("one", step)
    assert machine.step("one", STEPS, name="mine") == Decision(False, machine.events[-1:]), "the same workload goes on"
    assert machine.seen() == (SETTLED, "mine")
    assert (machine.workloads.names, list(machine.workloads.unnamed)) == (["mine"], [])


def test_a_new_name_may_be_that_of_an_unnamed_workload() -> None:
    machine = Machine()
    for app in ("one", "two"):
        for _ in range(3):
            machine.run(app)
    machine.start()
    for step in range(STEPS):
        machine.step("two", step, name="mine")
        assert machine.recognition.settled == (step == STEPS - 1), "with unnamed workloads about, the first steps decide"
    assert machine.seen() == (SETTLED, "mine")
    assert sorted(machine.workloads.names) == ["mine", "unnamed-1"]


def test_a_settled_workflow_that_gets_another_name_starts_over() -> None:
    machine = Machine()
    for _ in range(3):
        machine.run("one", name="one")
        machine.run("two")
    machine.start()
    machine.step("one", name="one")
    assert machine.step("two", name="other") == Decision(True, machine.events[-1:])
    assert machine.seen() == (GUESSED, "unnamed-1"), "it may be the workload that has no name yet"


def test_open_workflows_follow_the_new_name_of_their_workload() -> None:
    machine = Machine()
    machine.run("one")
    waiting = machine.start()
    machine.step("one")
    machine.start()
    machine.step("one")
    machine.step("one", 1, name="mine")
    machine.step("one", 2, name="mine")
    assert machine.seen() == (SETTLED, "mine")
    assert waiting.workload_name == "mine"
