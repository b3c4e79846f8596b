"""Access logs of recorded workflows, as a worker would write them, to train the access model on."""

from collections.abc import Iterable, Iterator, Mapping

from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, count
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.events import VOCAB
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

_POPULARITY_BLOCKS = 1 << 20


def access_logs(workflows: Iterable[TraceWorkflow], workloads: Mapping[str, str] | None = None) -> Iterator[AccessLog]:
    """The log of each workflow, one after the other. Times are those of the trace, as far as it has any.

    Args:
        workflows: the recorded workflows.
        workloads: of each workflow, by id; by default the ones that the trace names.
    """
    popularity, builder = PrefixPopularity(_POPULARITY_BLOCKS), PromptBuilder(VOCAB)
    for workflow in workflows:
        record, now = WorkflowRecord(), 0.0
        for number, step in enumerate(workflow.steps):
            prompt, output = builder.prompt(step), builder.output(step)
            blocks = count(prompt) // BLOCK_TOKENS
            position = record.begin(number, step.agent, prompt, blocks, now, popularity)
            computed = prompt + output[:-TOKEN_BYTES]  # the KV of the last token is never computed
            full = count(computed) // BLOCK_TOKENS
            if full > blocks:
                size = BLOCK_TOKENS * TOKEN_BYTES
                record.write(position, computed[blocks * size : full * size])
            record.end(position, now)
            now += step.pause_s
        workload = workflow.workload if workloads is None else workloads[workflow.id]
        yield AccessLog(workflow.id, record.steps, workload)
