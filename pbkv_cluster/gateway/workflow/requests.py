"""What a front door asks of workflows, as plain values."""

from dataclasses import dataclass

from pbkv_cluster.core.workflow.step_graph import StepGraph


@dataclass(frozen=True, slots=True)
class WorkflowRequest:
    """A workflow to open, or to find if it is open."""

    workflow_id: str = ""  # empty: the gateway draws one
    workload: str = ""
    tenant: str = ""
    lease_s: float = 0.0  # 0: the gateway's default
    step_graph: StepGraph | None = None
