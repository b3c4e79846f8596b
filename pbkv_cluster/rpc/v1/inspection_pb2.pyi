from pbkv_cluster.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListWorkflowsRequest(_message.Message):
    __slots__ = ("limit", "workload")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    limit: int
    workload: str
    def __init__(self, limit: _Optional[int] = ..., workload: _Optional[str] = ...) -> None: ...

class ListWorkflowsResponse(_message.Message):
    __slots__ = ("workflows", "open")
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    workflows: _containers.RepeatedCompositeFieldContainer[WorkflowSummary]
    open: int
    def __init__(self, workflows: _Optional[_Iterable[_Union[WorkflowSummary, _Mapping]]] = ..., open: _Optional[int] = ...) -> None: ...

class WorkflowSummary(_message.Message):
    __slots__ = ("workflow_id", "workload", "started_s", "idle_s", "lease_s", "steps", "running_steps", "agent_id", "tool", "worker_ids")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_STEPS_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    workload: str
    started_s: float
    idle_s: float
    lease_s: float
    steps: int
    running_steps: int
    agent_id: str
    tool: str
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workflow_id: _Optional[str] = ..., workload: _Optional[str] = ..., started_s: _Optional[float] = ..., idle_s: _Optional[float] = ..., lease_s: _Optional[float] = ..., steps: _Optional[int] = ..., running_steps: _Optional[int] = ..., agent_id: _Optional[str] = ..., tool: _Optional[str] = ..., worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class GetWorkflowRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class GetWorkflowResponse(_message.Message):
    __slots__ = ("summary", "steps")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    summary: WorkflowSummary
    steps: _containers.RepeatedCompositeFieldContainer[StepSummary]
    def __init__(self, summary: _Optional[_Union[WorkflowSummary, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[StepSummary, _Mapping]]] = ...) -> None: ...

class StepSummary(_message.Message):
    __slots__ = ("step", "agent_id", "call_site", "parent_step", "started_s", "duration_s", "prompt_tokens", "output_tokens", "tools")
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_SITE_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    step: int
    agent_id: str
    call_site: str
    parent_step: int
    started_s: float
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    tools: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, step: _Optional[int] = ..., agent_id: _Optional[str] = ..., call_site: _Optional[str] = ..., parent_step: _Optional[int] = ..., started_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., tools: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAgentsRequest(_message.Message):
    __slots__ = ("limit", "workload")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    limit: int
    workload: str
    def __init__(self, limit: _Optional[int] = ..., workload: _Optional[str] = ...) -> None: ...

class ListAgentsResponse(_message.Message):
    __slots__ = ("agents",)
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedCompositeFieldContainer[AgentSummary]
    def __init__(self, agents: _Optional[_Iterable[_Union[AgentSummary, _Mapping]]] = ...) -> None: ...

class AgentSummary(_message.Message):
    __slots__ = ("workload", "agent_id", "call_site", "steps", "prompt_tokens", "available_tokens", "captured", "delivered", "generated_tokens", "parting_pairs", "parting_tokens")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_SITE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARTING_PAIRS_FIELD_NUMBER: _ClassVar[int]
    PARTING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    agent_id: str
    call_site: str
    steps: int
    prompt_tokens: int
    available_tokens: int
    captured: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
    delivered: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
    generated_tokens: int
    parting_pairs: int
    parting_tokens: int
    def __init__(self, workload: _Optional[str] = ..., agent_id: _Optional[str] = ..., call_site: _Optional[str] = ..., steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., available_tokens: _Optional[int] = ..., captured: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., delivered: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., generated_tokens: _Optional[int] = ..., parting_pairs: _Optional[int] = ..., parting_tokens: _Optional[int] = ...) -> None: ...

class CheckIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckIndexResponse(_message.Message):
    __slots__ = ("indexed_blocks", "held_blocks", "unbacked_blocks", "missing_blocks", "misplaced_blocks", "changing_blocks", "differences")
    class Difference(_message.Message):
        __slots__ = ("worker_id", "key", "problem")
        WORKER_ID_FIELD_NUMBER: _ClassVar[int]
        KEY_FIELD_NUMBER: _ClassVar[int]
        PROBLEM_FIELD_NUMBER: _ClassVar[int]
        worker_id: str
        key: str
        problem: str
        def __init__(self, worker_id: _Optional[str] = ..., key: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...
    INDEXED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    UNBACKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MISSING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MISPLACED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHANGING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    indexed_blocks: int
    held_blocks: int
    unbacked_blocks: int
    missing_blocks: int
    misplaced_blocks: int
    changing_blocks: int
    differences: _containers.RepeatedCompositeFieldContainer[CheckIndexResponse.Difference]
    def __init__(self, indexed_blocks: _Optional[int] = ..., held_blocks: _Optional[int] = ..., unbacked_blocks: _Optional[int] = ..., missing_blocks: _Optional[int] = ..., misplaced_blocks: _Optional[int] = ..., changing_blocks: _Optional[int] = ..., differences: _Optional[_Iterable[_Union[CheckIndexResponse.Difference, _Mapping]]] = ...) -> None: ...

class WatchWorkflowsRequest(_message.Message):
    __slots__ = ("with_token_ids",)
    WITH_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    with_token_ids: bool
    def __init__(self, with_token_ids: _Optional[bool] = ...) -> None: ...

class WatchedEvent(_message.Message):
    __slots__ = ("workflow_id", "workload", "time_s", "step", "tool", "end")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    workload: str
    time_s: float
    step: WatchedStep
    tool: str
    end: WorkflowEnd
    def __init__(self, workflow_id: _Optional[str] = ..., workload: _Optional[str] = ..., time_s: _Optional[float] = ..., step: _Optional[_Union[WatchedStep, _Mapping]] = ..., tool: _Optional[str] = ..., end: _Optional[_Union[WorkflowEnd, _Mapping]] = ...) -> None: ...

class WorkflowEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchedStep(_message.Message):
    __slots__ = ("agent_id", "call_site", "started_s", "prompt_tokens", "output_tokens", "available_tokens", "delivered_tokens", "block_keys", "prompt", "output")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_SITE_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_KEYS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    call_site: str
    started_s: float
    prompt_tokens: int
    output_tokens: int
    available_tokens: int
    delivered_tokens: int
    block_keys: bytes
    prompt: _types_pb2.PackedTokens
    output: _types_pb2.PackedTokens
    def __init__(self, agent_id: _Optional[str] = ..., call_site: _Optional[str] = ..., started_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., available_tokens: _Optional[int] = ..., delivered_tokens: _Optional[int] = ..., block_keys: _Optional[bytes] = ..., prompt: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., output: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ...) -> None: ...
