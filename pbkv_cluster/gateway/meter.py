"""What finished steps and ended workflows add up to, since the gateway started."""

from collections import defaultdict
from collections.abc import Iterable

from pbkv_cluster.core.metrics.histogram import LONG_SECONDS, SecondsHistogram
from pbkv_cluster.core.metrics.labels import OTHER, BoundedLabels
from pbkv_cluster.core.usage import HitMeter, Usage


class GatewayMeter:
    """Sums of usage records, in all and by workload, and the distributions of the times that clients wait."""

    def __init__(self, max_workloads: int, tenants: Iterable[str] = ()) -> None:
        """Args:
        max_workloads: that are told apart; the others are counted together.
        tenants: with a name of their own in `queue_waits`, next to the one without a name.
        """
        self.totals = HitMeter()
        self.workloads: defaultdict[str, HitMeter] = defaultdict(HitMeter)  # by label
        self.ttft, self.steps, self.workflows = SecondsHistogram(), SecondsHistogram(), SecondsHistogram(LONG_SECONDS)
        self.queue_s = self.load_s = self.prefill_s = self.decode_s = 0.0
        self._labels = BoundedLabels(max_workloads)
        named = ["", *tenants]
        self._tenants = BoundedLabels(len(named))
        self.queue_waits = {self._tenants.label(tenant): SecondsHistogram() for tenant in named}  # by label of the tenant
        self.queue_waits[OTHER] = SecondsHistogram()

    def step_finished(self, usage: Usage, workload: str, tenant: str) -> None:
        """Takes in a step of a workflow of that workload, for that tenant."""
        self.totals.add(usage)
        self.workloads[self._labels.label(workload)].add(usage)
        if usage.generated_tokens:
            self.ttft.add(usage.ttft_s)
        self.steps.add(usage.total_s)
        self.queue_waits[self._tenants.label(tenant)].add(usage.queue_s)
        self.queue_s += usage.queue_s
        self.load_s += usage.load_s
        self.prefill_s += usage.prefill_s
        self.decode_s += usage.decode_s

    def workflow_ended(self, seconds: float) -> None:
        """Takes in a workflow that has been open for that long."""
        self.workflows.add(seconds)
