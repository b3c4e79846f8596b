"""Which step of which workflow asks for blocks."""

from typing import NamedTuple

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.workflow.step_graph import StepGraph


class StepIdentity(NamedTuple):
    """A step, as the cache and its policies know it. It stays the same when the step is preempted and opened again."""

    namespace: Namespace  # of the model and tenant
    workflow: str
    agent: str
    number: int  # as the gateway counts the steps of the workflow
    prompt_tokens: int  # tokens at the start of the sequence that are prompt; the others are output
    graph: StepGraph | None = None  # that the workflow has declared; None leaves what is known of it
    parent: int | None = None  # number of the step that this one follows; None: unknown, or it is the first
