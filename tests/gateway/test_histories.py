"""What the gateway keeps of open workflows for a predictor that restarts: enough, and bounded in bytes."""

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.predictor_feed.histories import WORKFLOW_BYTES, Histories
from pbkv_cluster.rpc.convert import event_from_wire, event_to_wire

PIECES = tuple(range(128))


def step(workflow: str, number: int) -> list[WorkflowEvent]:
    return [
        WorkflowEvent(EventKind.STEP_STARTED, workflow, 2 * number + 1, 0.0, "", "a", step=number, pieces=PIECES),
        WorkflowEvent(EventKind.STEP_FINISHED, workflow, 2 * number + 2, 0.0, "", "a", step=number, words=(1, 2), hidden=b"ab"),
    ]


def add(histories: Histories, *events: WorkflowEvent) -> None:
    for event in events:
        histories.add(event_to_wire(event))


def started(workflow: str) -> WorkflowEvent:
    return WorkflowEvent(EventKind.WORKFLOW_STARTED, workflow, 0, 0.0, "app")


def told(histories: Histories) -> list[WorkflowEvent]:
    return [event_from_wire(event) for event in histories.events()]


def test_steps_between_the_first_and_the_latest_lose_what_their_prompts_and_outputs_contained() -> None:
    histories = Histories()
    add(histories, started("w"))
    waiting = [event_to_wire(event) for number in range(20) for event in step("w", number)]
    for event in waiting:
        histories.add(event)
    found = told(histories)
    assert [event.sequence for event in found] == list(range(41))
    kept = [event.step for event in found if event.pieces]
    assert kept == [0, 1, 2, 16, 17, 18, 19]
    assert kept == [event.step for event in found if event.hidden] == [event.step for event in found if event.words]
    assert all(event.agent == "a" for event in found[1:])
    assert all(event_from_wire(event).pieces for event in waiting[::2]), "what waits to be sent is whole"
    assert histories.size_bytes == sum(event.ByteSize() for event in histories.events())


def test_a_history_ends_with_its_workflow() -> None:
    histories = Histories()
    add(histories, started("w"), *step("w", 0), started("v"))
    add(histories, WorkflowEvent(EventKind.WORKFLOW_ENDED, "w", 3, 0.0))
    assert told(histories) == [started("v")]
    add(histories, WorkflowEvent(EventKind.WORKFLOW_ENDED, "v", 3, 0.0), WorkflowEvent(EventKind.WORKFLOW_ENDED, "u", 3, 0.0))
    assert histories.size_bytes == len(histories) == 0


def test_a_long_workflow_keeps_its_start_and_its_latest_steps() -> None:
    histories, steps = Histories(), 20_000
    add(histories, started("w"))
    for number in range(steps):
        add(histories, *step("w", number))
        assert histories.size_bytes <= WORKFLOW_BYTES
    found = told(histories)
    assert found[0] == started("w")
    assert [event.sequence for event in found[1:]] == list(range(found[1].sequence, 2 * steps + 1))
    assert [event.step for event in found if event.pieces] == list(range(steps - 4, steps))
    assert histories.size_bytes == sum(event.ByteSize() for event in histories.events())


def test_workflows_silent_for_longest_leave_first() -> None:
    size = event_to_wire(started("w0")).ByteSize()
    histories = Histories(4 * size)
    for name in ("w0", "w1", "w2", "w0", "w3", "w4"):
        add(histories, started(name))
    assert [event.workflow for event in told(histories)] == ["w0", "w0", "w3", "w4"]
