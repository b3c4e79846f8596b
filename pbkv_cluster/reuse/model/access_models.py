"""The access models of all workloads. Each begins as a copy of the prior, and learns from its own workflows alone.

So no workload is served worse because of what others do. A workflow whose workload is not known is ranked by a model that has
learnt from all workflows, and one whose workload has taught nothing yet by the prior: what holds for any workload.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate, Changes

ANY = ""
"""The workload of the model that learns from all workflows."""

MOST_MODELS = 12
"""Beyond, the model that was taught longest ago is dropped. One takes some 18 MB, and its next events up to 20 MB more."""


class Learnt(NamedTuple):
    """What one model has learnt from a workflow."""

    workload: str
    fresh: bool  # it is the first
    changes: Changes
    dropped: str | None = None  # workload whose model has made room


class AccessModels:
    """The prior, and the models of workloads by their keys."""

    def __init__(self, prior: AccessModel | None = None, most: int = MOST_MODELS) -> None:
        """Args:
        prior: what new models begin with; by default nothing. It must not change any more.
        most: models of workloads, beside the prior.
        """
        self.prior = prior or AccessModel()
        self._most = most
        self._models: OrderedDict[str, AccessModel] = OrderedDict()  # the one taught longest ago first

    def __len__(self) -> int:
        """Models of workloads."""
        return len(self._models)

    @property
    def workloads(self) -> list[str]:
        """Those that have a model, the one taught longest ago first."""
        return list(self._models)

    def of(self, workload: str) -> AccessModel:
        """The model that says most of a workload's workflows; `ANY`: their workload is not known."""
        return self._models.get(workload, self.prior)

    def learn(self, ended: AccessLog) -> list[Learnt]:
        """Learns from a workflow that has ended: for its workload, if that is known, and for all.

        Raises:
            ValueError: the steps contradict each other; nothing was learnt.
        """
        return [self._learn(workload, ended) for workload in dict.fromkeys((ended.workload, ANY))]

    def learn_own(self, ended: AccessLog) -> list[Learnt]:
        """The same for its workload alone: where all workflows have a known one, nobody asks for `ANY`."""
        return [self._learn(ended.workload, ended)]

    def apply(self, update: AccessUpdate) -> None:
        """Takes over parts of a model that has learnt elsewhere."""
        if update.workload is None:
            if update.fresh:
                self.prior = AccessModel()
                self._models.clear()
            self.prior.apply(update)
            return
        if update.fresh:
            self._models.pop(update.workload, None)
        self._open(update.workload).apply(update)
        self._drop()

    def export(self) -> Iterable[AccessUpdate]:
        """All that was learnt, to be applied to other models in this order; without the prior."""
        for workload, model in self._models.items():
            yield model.export(workload=workload, fresh=True)

    def _learn(self, workload: str, ended: AccessLog) -> Learnt:
        fresh = workload not in self._models
        model = self.prior.copy() if fresh else self._models[workload]
        changes = model.learn(ended.steps)
        self._models[workload] = model
        self._models.move_to_end(workload)
        return Learnt(workload, fresh, changes, self._drop())

    def _open(self, workload: str) -> AccessModel:
        model = self._models.get(workload)
        if model is None:
            model = self._models[workload] = self.prior.copy()
        self._models.move_to_end(workload)
        return model

    def _drop(self) -> str | None:
        return self._models.popitem(last=False)[0] if len(self._models) > self._most else None


def train(logs: Iterable[AccessLog], prior: AccessModel | None = None) -> AccessModels:
    """Models that have learnt from some workflows, one after the other.

    Args:
        logs: of the workflows.
        prior: what they begin with.
    """
    models = AccessModels(prior)
    for each in logs:
        models.learn(each)
    return models
