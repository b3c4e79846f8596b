"""How large workflows become: blocks of their own at their ends, by the agent that they began with."""

from collections import OrderedDict

from pbkv_cluster.core.ewma import Ewma

_KINDS = 4096  # agents that are kept, those with which a workflow that ended began last
_WEIGHT = 0.1  # of the workflow that ended last, in the mean of its kind


class WorkflowSizes:
    """The mean size of each kind of workflow, as far as some have ended."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, Ewma] = OrderedDict()

    def add(self, kind: str, blocks: int) -> None:
        """A workflow that began with an agent has ended."""
        mean = self._means.pop(kind, None) or Ewma(_WEIGHT, initial=0.0)
        mean.add(blocks)
        self._means[kind] = mean
        if len(self._means) > _KINDS:
            self._means.popitem(last=False)

    def expected(self, kind: str) -> int:
        """Blocks that a workflow will have; 0 if nothing is known of its kind."""
        mean = self._means.get(kind)
        return 0 if mean is None else round(mean.value)
