"""The known workloads: a bounded number of them, each with its model and the profile by which it is recognised."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from pbkv_cluster.predictor_service.workload.profiles import WorkloadProfiles
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel


class Workload:
    """A workload and all that is learnt of it. Its open workflows share this object, so all of them follow a new name."""

    __slots__ = ("key", "model", "name")

    def __init__(self, name: str, model: WorkloadModel, key: str) -> None:
        self.name = name
        self.model = model
        self.key = key  # its first name: what others have learnt of it is found by it, also after the workload is renamed


class Workloads:
    """Workloads by name. One that no client has named yet has a name of our own until a client names it."""

    def __init__(self, new_model: Callable[[], WorkloadModel], max_workloads: int) -> None:
        """Args:
        new_model: makes the model of a new workload.
        max_workloads: beyond, the longest unused workload leaves; half of them may be unnamed.
        """
        self._new_model = new_model
        self._max_workloads = max_workloads
        self._workloads: OrderedDict[str, Workload] = OrderedDict()  # longest unused first
        self._unnamed: dict[str, None] = {}  # those that no client has named yet
        self._opened = 0  # unnamed workloads ever
        self.profiles = WorkloadProfiles()

    def __contains__(self, name: str) -> bool:
        return name in self._workloads

    @property
    def names(self) -> list[str]:
        """Names of all workloads, the longest unused first."""
        return list(self._workloads)

    @property
    def unnamed(self) -> Collection[str]:
        """Names of the workloads that no client has named yet."""
        return self._unnamed.keys()

    def models(self) -> list[WorkloadModel]:
        """The models of all workloads, the longest unused first."""
        return [workload.model for workload in self._workloads.values()]

    def get(self, name: str) -> Workload | None:
        """The workload of that name, if it is known."""
        return self._workloads.get(name)

    def use(self, name: str) -> Workload:
        """The workload of that name, from now on the latest used one; a new one if it is not known."""
        workload = self._workloads.get(name)
        if workload is None:
            workload = self._workloads[name] = Workload(name, self._new_model(), name)
            if len(self._workloads) > self._max_workloads:
                self._remove(next(iter(self._workloads)))
        self._workloads.move_to_end(name)
        return workload

    def new_name(self) -> str:
        """A name for a workload that no client has named; the longest unused unnamed one leaves if there are too many."""
        if len(self._unnamed) >= max(1, self._max_workloads // 2):
            self._remove(next(name for name in self._workloads if name in self._unnamed))
        self._opened += 1
        name = f"unnamed-{self._opened}"
        self._unnamed[name] = None
        return name

    def set_named(self, name: str) -> None:
        """A client has used a name: the workload of that name, if there is one, is not unnamed any more."""
        self._unnamed.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Gives an unnamed workload the name by which a client calls it; no workload has that name yet."""
        workload = self._workloads[new] = self._workloads.pop(old)
        workload.name = new
        self.profiles.rename(old, new)
        self._unnamed.pop(old, None)

    def dump(self) -> dict[str, Any]:
        """All that has been learnt, without the open workflows."""
        return {
            "workloads": {name: workload.model.dump() for name, workload in self._workloads.items()},
            "recognition": self.profiles.dump(),
            "keys": {name: workload.key for name, workload in self._workloads.items()},
            "unnamed": list(self._unnamed),
            "opened": self._opened,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Replaces what is known by what `dump` gave.

        Raises:
            ValueError: the state does not fit; all is as before.
        """
        models = state.get("workloads")
        if not isinstance(models, dict):
            raise ValueError("it holds no workloads")
        keys = state.get("keys")
        if not isinstance(keys, dict) or keys.keys() != models.keys() or not all(isinstance(key, str) for key in keys.values()):
            raise ValueError("the keys are not of these workloads")
        workloads: OrderedDict[str, Workload] = OrderedDict()
        for name, each in models.items():
            workload = workloads[name] = Workload(name, self._new_model(), keys[name])
            workload.model.restore(each if isinstance(each, dict) else {})
        profiles, unnamed, opened = state.get("recognition"), state.get("unnamed"), state.get("opened")
        if not isinstance(profiles, dict) or not profiles.keys() <= workloads.keys():
            raise ValueError("the profiles are not of these workloads")
        restored = WorkloadProfiles.restore(profiles)
        if (
            not isinstance(unnamed, list)
            or not all(isinstance(name, str) for name in unnamed)
            or not profiles.keys() >= set(unnamed)
            or type(opened) is not int
        ):
            raise ValueError("the unnamed workloads are not of these workloads")
        self._workloads, self.profiles = workloads, restored
        self._unnamed, self._opened = dict.fromkeys(unnamed), opened

    def _remove(self, name: str) -> None:
        del self._workloads[name]
        self._unnamed.pop(name, None)
        self.profiles.forget(name)
