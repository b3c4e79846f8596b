"""Access models for tests: taught by some workflows, written to bytes and read from them."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate


def taught(logs: Iterable[Sequence[StepLog]]) -> AccessModel:
    """A model that has learnt from some workflows, one after the other."""
    model = AccessModel()
    for steps in logs:
        model.learn(steps)
    return model


def dump(model: AccessModel) -> bytes:
    return model.export().to_bytes()


def load(data: bytes) -> AccessModel:
    """Raises:
    ValueError: the bytes are of no model.
    """
    model = AccessModel()
    model.apply(AccessUpdate.from_bytes(data))
    return model


def contents(model: AccessModel) -> tuple[object, ...]:
    """All that a model has learnt, to be compared."""
    update = model.export()
    counts = {context: dict(events) for context, events in update.contexts}
    tables = (update.rows, update.at_risk, update.uses, update.weights)
    return *(table.tobytes() for table in tables), counts
