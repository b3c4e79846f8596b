"""Records a running cluster: the steps that its gateway tells of, with block keys in the place of tokens."""

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.tokens import as_array
from pbkv_cluster.gateway.http.sessions.chains import is_of_prompt
from pbkv_cluster.rpc.v1 import inspection_pb2
from pbkv_cluster.simulator.recording.ids import Ids, keyed_agent
from pbkv_cluster.simulator.recording.known_blocks import KnownBlocks
from pbkv_cluster.simulator.recording.recorder import RecordedStep, Recorder


class ClusterRecording:
    """Feeds a recorder with the events of `InspectionService.WatchWorkflows`."""

    def __init__(self, recorder: Recorder, blocks: KnownBlocks, ids: Ids) -> None:
        """`ids` are for agents that are named by words of their prompts."""
        self._recorder = recorder
        self._ids = ids
        self._blocks = blocks
        self._steps = 0

    def add(self, event: inspection_pb2.WatchedEvent) -> None:
        """Takes the next event."""
        match event.WhichOneof("event"):
            case "step":
                self._step(event)
            case "tool":
                self._recorder.tool(event.workflow_id, event.tool)
            case "end":
                self._recorder.end(event.workflow_id)

    def _step(self, event: inspection_pb2.WatchedEvent) -> None:
        step, keys = event.step, event.step.block_keys
        self._steps += 1
        hashed = self._blocks.step(
            [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)],
            step.prompt_tokens,
            step.output_tokens,
            f"{event.workflow_id}/{step.started_s}/{self._steps}",
        )
        with_ids = step.HasField("prompt")
        self._recorder.step(
            event.workflow_id,
            event.workload,
            RecordedStep(
                keyed_agent(step.agent_id, self._ids) if is_of_prompt(step.agent_id) else step.agent_id,
                hashed.prompt,
                hashed.output_id,
                step.output_tokens,
                step.started_s,
                event.time_s,
                step.call_site,
                step.available_tokens,
                step.delivered_tokens,
                as_array(step.prompt.data).tolist() if with_ids else None,
                as_array(step.output.data).tolist() if with_ids else None,
            ),
        )
