from pbkv_cluster.rpc.v1 import types_pb2 as _types_pb2
from pbkv_cluster.rpc.v1 import store_pb2 as _store_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StartWorkflowRequest(_message.Message):
    __slots__ = ("workflow_id", "workload", "tenant", "lease_s", "step_graph")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    STEP_GRAPH_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    workload: str
    tenant: str
    lease_s: float
    step_graph: _types_pb2.StepGraph
    def __init__(self, workflow_id: _Optional[str] = ..., workload: _Optional[str] = ..., tenant: _Optional[str] = ..., lease_s: _Optional[float] = ..., step_graph: _Optional[_Union[_types_pb2.StepGraph, _Mapping]] = ...) -> None: ...

class StartWorkflowResponse(_message.Message):
    __slots__ = ("workflow_id", "lease_s")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    lease_s: float
    def __init__(self, workflow_id: _Optional[str] = ..., lease_s: _Optional[float] = ...) -> None: ...

class SubmitStepRequest(_message.Message):
    __slots__ = ("workflow_id", "agent_id", "call_site", "parent_step", "prompt", "sampling", "priority", "tenant", "step_id", "resume", "receiver", "after")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_SITE_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    agent_id: str
    call_site: str
    parent_step: int
    prompt: _types_pb2.Prompt
    sampling: _types_pb2.Sampling
    priority: int
    tenant: str
    step_id: str
    resume: Resumption
    receiver: _types_pb2.Receiver
    after: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workflow_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., call_site: _Optional[str] = ..., parent_step: _Optional[int] = ..., prompt: _Optional[_Union[_types_pb2.Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., step_id: _Optional[str] = ..., resume: _Optional[_Union[Resumption, _Mapping]] = ..., receiver: _Optional[_Union[_types_pb2.Receiver, _Mapping]] = ..., after: _Optional[_Iterable[str]] = ...) -> None: ...

class Resumption(_message.Message):
    __slots__ = ("step", "token_ids", "characters")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    step: int
    token_ids: _types_pb2.PackedTokens
    characters: int
    def __init__(self, step: _Optional[int] = ..., token_ids: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., characters: _Optional[int] = ...) -> None: ...

class StepEvent(_message.Message):
    __slots__ = ("accepted", "tokens", "finished", "invitation", "handed_over")
    class Accepted(_message.Message):
        __slots__ = ("step", "worker_id", "prompt_tokens")
        STEP_FIELD_NUMBER: _ClassVar[int]
        WORKER_ID_FIELD_NUMBER: _ClassVar[int]
        PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        step: int
        worker_id: str
        prompt_tokens: int
        def __init__(self, step: _Optional[int] = ..., worker_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...
    class Tokens(_message.Message):
        __slots__ = ("token_ids", "text", "logprobs")
        TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        token_ids: _types_pb2.PackedTokens
        text: str
        logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenLogprobs]
        def __init__(self, token_ids: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_types_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...
    class Finished(_message.Message):
        __slots__ = ("reason", "usage")
        REASON_FIELD_NUMBER: _ClassVar[int]
        USAGE_FIELD_NUMBER: _ClassVar[int]
        reason: _types_pb2.FinishReason
        usage: _types_pb2.Usage
        def __init__(self, reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ...) -> None: ...
    class Invitation(_message.Message):
        __slots__ = ("address", "ticket", "tenant")
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        TICKET_FIELD_NUMBER: _ClassVar[int]
        TENANT_FIELD_NUMBER: _ClassVar[int]
        address: str
        ticket: bytes
        tenant: str
        def __init__(self, address: _Optional[str] = ..., ticket: _Optional[bytes] = ..., tenant: _Optional[str] = ...) -> None: ...
    class HandedOver(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    accepted: StepEvent.Accepted
    tokens: StepEvent.Tokens
    finished: StepEvent.Finished
    invitation: StepEvent.Invitation
    handed_over: StepEvent.HandedOver
    def __init__(self, accepted: _Optional[_Union[StepEvent.Accepted, _Mapping]] = ..., tokens: _Optional[_Union[StepEvent.Tokens, _Mapping]] = ..., finished: _Optional[_Union[StepEvent.Finished, _Mapping]] = ..., invitation: _Optional[_Union[StepEvent.Invitation, _Mapping]] = ..., handed_over: _Optional[_Union[StepEvent.HandedOver, _Mapping]] = ...) -> None: ...

class SubmitStepsRequest(_message.Message):
    __slots__ = ("actions",)
    class Begin(_message.Message):
        __slots__ = ("step", "metadata", "timeout_s")
        STEP_FIELD_NUMBER: _ClassVar[int]
        METADATA_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
        step: SubmitStepRequest
        metadata: _containers.RepeatedCompositeFieldContainer[_types_pb2.Header]
        timeout_s: float
        def __init__(self, step: _Optional[_Union[SubmitStepRequest, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_types_pb2.Header, _Mapping]]] = ..., timeout_s: _Optional[float] = ...) -> None: ...
    class Action(_message.Message):
        __slots__ = ("call", "begin", "cancel")
        CALL_FIELD_NUMBER: _ClassVar[int]
        BEGIN_FIELD_NUMBER: _ClassVar[int]
        CANCEL_FIELD_NUMBER: _ClassVar[int]
        call: int
        begin: SubmitStepsRequest.Begin
        cancel: _types_pb2.CallCancel
        def __init__(self, call: _Optional[int] = ..., begin: _Optional[_Union[SubmitStepsRequest.Begin, _Mapping]] = ..., cancel: _Optional[_Union[_types_pb2.CallCancel, _Mapping]] = ...) -> None: ...
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[SubmitStepsRequest.Action]
    def __init__(self, actions: _Optional[_Iterable[_Union[SubmitStepsRequest.Action, _Mapping]]] = ...) -> None: ...

class SubmitStepsResponse(_message.Message):
    __slots__ = ("events",)
    class Event(_message.Message):
        __slots__ = ("call", "event", "end")
        CALL_FIELD_NUMBER: _ClassVar[int]
        EVENT_FIELD_NUMBER: _ClassVar[int]
        END_FIELD_NUMBER: _ClassVar[int]
        call: int
        event: StepEvent
        end: _types_pb2.CallEnd
        def __init__(self, call: _Optional[int] = ..., event: _Optional[_Union[StepEvent, _Mapping]] = ..., end: _Optional[_Union[_types_pb2.CallEnd, _Mapping]] = ...) -> None: ...
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[SubmitStepsResponse.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[SubmitStepsResponse.Event, _Mapping]]] = ...) -> None: ...

class ReportToolCallRequest(_message.Message):
    __slots__ = ("workflow_id", "tool", "phase", "expected_s", "call_id")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[ReportToolCallRequest.Phase]
        PHASE_STARTED: _ClassVar[ReportToolCallRequest.Phase]
        PHASE_FINISHED: _ClassVar[ReportToolCallRequest.Phase]
    PHASE_UNSPECIFIED: ReportToolCallRequest.Phase
    PHASE_STARTED: ReportToolCallRequest.Phase
    PHASE_FINISHED: ReportToolCallRequest.Phase
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_S_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    tool: str
    phase: ReportToolCallRequest.Phase
    expected_s: float
    call_id: str
    def __init__(self, workflow_id: _Optional[str] = ..., tool: _Optional[str] = ..., phase: _Optional[_Union[ReportToolCallRequest.Phase, str]] = ..., expected_s: _Optional[float] = ..., call_id: _Optional[str] = ...) -> None: ...

class ReportToolCallResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EndWorkflowRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class EndWorkflowResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusResponse(_message.Message):
    __slots__ = ("cluster", "model", "workers", "open_workflows", "running_steps", "predictor_reachable", "index_reachable", "totals", "decisions", "predictor_address", "problems", "log_path", "http_address", "reasons", "discovery_url", "dashboard_url", "gateways", "members", "nodes")
    class Worker(_message.Message):
        __slots__ = ("worker_id", "node_id", "address", "reachable", "store", "running", "waiting", "access_updates_applied", "access_workflows", "predictor_reachable", "engine")
        WORKER_ID_FIELD_NUMBER: _ClassVar[int]
        NODE_ID_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        REACHABLE_FIELD_NUMBER: _ClassVar[int]
        STORE_FIELD_NUMBER: _ClassVar[int]
        RUNNING_FIELD_NUMBER: _ClassVar[int]
        WAITING_FIELD_NUMBER: _ClassVar[int]
        ACCESS_UPDATES_APPLIED_FIELD_NUMBER: _ClassVar[int]
        ACCESS_WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
        PREDICTOR_REACHABLE_FIELD_NUMBER: _ClassVar[int]
        ENGINE_FIELD_NUMBER: _ClassVar[int]
        worker_id: str
        node_id: str
        address: str
        reachable: bool
        store: _store_pb2.StoreStat
        running: int
        waiting: int
        access_updates_applied: int
        access_workflows: int
        predictor_reachable: bool
        engine: str
        def __init__(self, worker_id: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., reachable: _Optional[bool] = ..., store: _Optional[_Union[_store_pb2.StoreStat, _Mapping]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., access_updates_applied: _Optional[int] = ..., access_workflows: _Optional[int] = ..., predictor_reachable: _Optional[bool] = ..., engine: _Optional[str] = ...) -> None: ...
    class Problem(_message.Message):
        __slots__ = ("member", "problem")
        MEMBER_FIELD_NUMBER: _ClassVar[int]
        PROBLEM_FIELD_NUMBER: _ClassVar[int]
        member: str
        problem: str
        def __init__(self, member: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...
    class Reasons(_message.Message):
        __slots__ = ("member", "times")
        class TimesEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: int
            def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
        MEMBER_FIELD_NUMBER: _ClassVar[int]
        TIMES_FIELD_NUMBER: _ClassVar[int]
        member: str
        times: _containers.ScalarMap[str, int]
        def __init__(self, member: _Optional[str] = ..., times: _Optional[_Mapping[str, int]] = ...) -> None: ...
    class Totals(_message.Message):
        __slots__ = ("steps", "prompt_tokens", "available_tokens", "captured", "delivered", "computed_tokens", "generated_tokens")
        STEPS_FIELD_NUMBER: _ClassVar[int]
        PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        AVAILABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
        CAPTURED_FIELD_NUMBER: _ClassVar[int]
        DELIVERED_FIELD_NUMBER: _ClassVar[int]
        COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
        GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
        steps: int
        prompt_tokens: int
        available_tokens: int
        captured: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
        delivered: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
        computed_tokens: int
        generated_tokens: int
        def __init__(self, steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., available_tokens: _Optional[int] = ..., captured: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., delivered: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., computed_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...
    class Gateway(_message.Message):
        __slots__ = ("name", "node_id", "address", "http_address", "reachable", "open_workflows", "running_steps")
        NAME_FIELD_NUMBER: _ClassVar[int]
        NODE_ID_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
        REACHABLE_FIELD_NUMBER: _ClassVar[int]
        OPEN_WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
        RUNNING_STEPS_FIELD_NUMBER: _ClassVar[int]
        name: str
        node_id: str
        address: str
        http_address: str
        reachable: bool
        open_workflows: int
        running_steps: int
        def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., http_address: _Optional[str] = ..., reachable: _Optional[bool] = ..., open_workflows: _Optional[int] = ..., running_steps: _Optional[int] = ...) -> None: ...
    class Member(_message.Message):
        __slots__ = ("name", "up", "restarts", "last_failure")
        NAME_FIELD_NUMBER: _ClassVar[int]
        UP_FIELD_NUMBER: _ClassVar[int]
        RESTARTS_FIELD_NUMBER: _ClassVar[int]
        LAST_FAILURE_FIELD_NUMBER: _ClassVar[int]
        name: str
        up: bool
        restarts: int
        last_failure: str
        def __init__(self, name: _Optional[str] = ..., up: _Optional[bool] = ..., restarts: _Optional[int] = ..., last_failure: _Optional[str] = ...) -> None: ...
    class Node(_message.Message):
        __slots__ = ("node_id", "host", "state", "reason")
        NODE_ID_FIELD_NUMBER: _ClassVar[int]
        HOST_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        node_id: str
        host: str
        state: str
        reason: str
        def __init__(self, node_id: _Optional[str] = ..., host: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
    class DecisionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_REACHABLE_FIELD_NUMBER: _ClassVar[int]
    INDEX_REACHABLE_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    LOG_PATH_FIELD_NUMBER: _ClassVar[int]
    HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    DISCOVERY_URL_FIELD_NUMBER: _ClassVar[int]
    DASHBOARD_URL_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model: str
    workers: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Worker]
    open_workflows: int
    running_steps: int
    predictor_reachable: bool
    index_reachable: bool
    totals: GetClusterStatusResponse.Totals
    decisions: _containers.ScalarMap[str, int]
    predictor_address: str
    problems: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Problem]
    log_path: str
    http_address: str
    reasons: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Reasons]
    discovery_url: str
    dashboard_url: str
    gateways: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Gateway]
    members: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Member]
    nodes: _containers.RepeatedCompositeFieldContainer[GetClusterStatusResponse.Node]
    def __init__(self, cluster: _Optional[str] = ..., model: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[GetClusterStatusResponse.Worker, _Mapping]]] = ..., open_workflows: _Optional[int] = ..., running_steps: _Optional[int] = ..., predictor_reachable: _Optional[bool] = ..., index_reachable: _Optional[bool] = ..., totals: _Optional[_Union[GetClusterStatusResponse.Totals, _Mapping]] = ..., decisions: _Optional[_Mapping[str, int]] = ..., predictor_address: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[GetClusterStatusResponse.Problem, _Mapping]]] = ..., log_path: _Optional[str] = ..., http_address: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[GetClusterStatusResponse.Reasons, _Mapping]]] = ..., discovery_url: _Optional[str] = ..., dashboard_url: _Optional[str] = ..., gateways: _Optional[_Iterable[_Union[GetClusterStatusResponse.Gateway, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[GetClusterStatusResponse.Member, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[GetClusterStatusResponse.Node, _Mapping]]] = ...) -> None: ...
