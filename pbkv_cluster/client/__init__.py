"""The Python client.

    from pbkv_cluster.client import Client
    with Client("127.0.0.1:26100") as client, client.start_workflow() as workflow:
        step = workflow.run(agent="planner", prompt="Plan a trip.", max_tokens=32)
        print(step.text, step.usage.delivered)

A client that knows what comes next can say so: `workflow.prefetch` has what is cached of a prompt loaded to the GPU,
`workflow.lease_blocks` asks that it stays cached for a while.

`AsyncClient` is the same for asyncio. Both take the addresses of several gateways, and go on at another when one is gone, in
the middle of a step, too. Calls raise the errors of `pbkv_cluster.core.errors`.
"""

from pbkv_cluster.client.aio import AsyncClient, AsyncWorkflow
from pbkv_cluster.client.blocks import AsyncBlockLease, BlockLease, Prefetched
from pbkv_cluster.client.requests import Prompt, StepOptions
from pbkv_cluster.client.results import StepResult
from pbkv_cluster.client.sync import Client, Workflow
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode

__all__ = [
    "Accepted",
    "AsyncBlockLease",
    "AsyncClient",
    "AsyncWorkflow",
    "BlockLease",
    "Client",
    "FinishReason",
    "Finished",
    "Join",
    "Prefetched",
    "Prompt",
    "StepEvent",
    "StepGraph",
    "StepNode",
    "StepOptions",
    "StepResult",
    "Tokens",
    "Workflow",
]
