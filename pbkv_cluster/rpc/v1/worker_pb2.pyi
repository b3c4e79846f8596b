from pbkv_cluster.rpc.v1 import types_pb2 as _types_pb2
from pbkv_cluster.rpc.v1 import store_pb2 as _store_pb2
from pbkv_cluster.rpc.v1 import workflow_pb2 as _workflow_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReceiveOutputRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    def __init__(self, ticket: _Optional[bytes] = ...) -> None: ...

class ReceiveOutputResponse(_message.Message):
    __slots__ = ("receiver", "events")
    class Event(_message.Message):
        __slots__ = ("call", "event")
        CALL_FIELD_NUMBER: _ClassVar[int]
        EVENT_FIELD_NUMBER: _ClassVar[int]
        call: int
        event: _workflow_pb2.StepEvent
        def __init__(self, call: _Optional[int] = ..., event: _Optional[_Union[_workflow_pb2.StepEvent, _Mapping]] = ...) -> None: ...
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    receiver: bytes
    events: _containers.RepeatedCompositeFieldContainer[ReceiveOutputResponse.Event]
    def __init__(self, receiver: _Optional[bytes] = ..., events: _Optional[_Iterable[_Union[ReceiveOutputResponse.Event, _Mapping]]] = ...) -> None: ...

class RunStepRequest(_message.Message):
    __slots__ = ("request_id", "workflow_id", "agent_id", "step", "tenant", "prompt", "sampling", "sent", "priority", "step_graph", "parent_step", "remote_steps", "remote_after", "direct")
    class Direct(_message.Message):
        __slots__ = ("receiver", "age_s", "available_tokens", "retries")
        RECEIVER_FIELD_NUMBER: _ClassVar[int]
        AGE_S_FIELD_NUMBER: _ClassVar[int]
        AVAILABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
        RETRIES_FIELD_NUMBER: _ClassVar[int]
        receiver: _types_pb2.Receiver
        age_s: float
        available_tokens: int
        retries: int
        def __init__(self, receiver: _Optional[_Union[_types_pb2.Receiver, _Mapping]] = ..., age_s: _Optional[float] = ..., available_tokens: _Optional[int] = ..., retries: _Optional[int] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STEP_GRAPH_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    REMOTE_STEPS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_AFTER_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    workflow_id: str
    agent_id: str
    step: int
    tenant: str
    prompt: _types_pb2.PackedTokens
    sampling: _types_pb2.Sampling
    sent: _types_pb2.PackedTokens
    priority: int
    step_graph: _types_pb2.StepGraph
    parent_step: int
    remote_steps: _containers.RepeatedCompositeFieldContainer[RemoteStep]
    remote_after: int
    direct: RunStepRequest.Direct
    def __init__(self, request_id: _Optional[str] = ..., workflow_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., step: _Optional[int] = ..., tenant: _Optional[str] = ..., prompt: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., sent: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., priority: _Optional[int] = ..., step_graph: _Optional[_Union[_types_pb2.StepGraph, _Mapping]] = ..., parent_step: _Optional[int] = ..., remote_steps: _Optional[_Iterable[_Union[RemoteStep, _Mapping]]] = ..., remote_after: _Optional[int] = ..., direct: _Optional[_Union[RunStepRequest.Direct, _Mapping]] = ...) -> None: ...

class RemoteStep(_message.Message):
    __slots__ = ("index", "step", "age_s", "length", "began", "ended")
    class Began(_message.Message):
        __slots__ = ("agent_id", "parent_step", "tenant", "came_from", "follows", "rest")
        AGENT_ID_FIELD_NUMBER: _ClassVar[int]
        PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
        TENANT_FIELD_NUMBER: _ClassVar[int]
        CAME_FROM_FIELD_NUMBER: _ClassVar[int]
        FOLLOWS_FIELD_NUMBER: _ClassVar[int]
        REST_FIELD_NUMBER: _ClassVar[int]
        agent_id: str
        parent_step: int
        tenant: str
        came_from: int
        follows: int
        rest: _types_pb2.PackedTokens
        def __init__(self, agent_id: _Optional[str] = ..., parent_step: _Optional[int] = ..., tenant: _Optional[str] = ..., came_from: _Optional[int] = ..., follows: _Optional[int] = ..., rest: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ...) -> None: ...
    class Ended(_message.Message):
        __slots__ = ("tenant", "output")
        TENANT_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_FIELD_NUMBER: _ClassVar[int]
        tenant: str
        output: _types_pb2.PackedTokens
        def __init__(self, tenant: _Optional[str] = ..., output: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    index: int
    step: int
    age_s: float
    length: int
    began: RemoteStep.Began
    ended: RemoteStep.Ended
    def __init__(self, index: _Optional[int] = ..., step: _Optional[int] = ..., age_s: _Optional[float] = ..., length: _Optional[int] = ..., began: _Optional[_Union[RemoteStep.Began, _Mapping]] = ..., ended: _Optional[_Union[RemoteStep.Ended, _Mapping]] = ...) -> None: ...

class TellStepsRequest(_message.Message):
    __slots__ = ("workflow_id", "after", "remote_steps")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REMOTE_STEPS_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    after: int
    remote_steps: _containers.RepeatedCompositeFieldContainer[RemoteStep]
    def __init__(self, workflow_id: _Optional[str] = ..., after: _Optional[int] = ..., remote_steps: _Optional[_Iterable[_Union[RemoteStep, _Mapping]]] = ...) -> None: ...

class TellStepsResponse(_message.Message):
    __slots__ = ("heard",)
    HEARD_FIELD_NUMBER: _ClassVar[int]
    heard: bool
    def __init__(self, heard: _Optional[bool] = ...) -> None: ...

class LoadSpeeds(_message.Message):
    __slots__ = ("prefill_token_s", "loads")
    class Load(_message.Message):
        __slots__ = ("tier", "token_s", "queue_s")
        TIER_FIELD_NUMBER: _ClassVar[int]
        TOKEN_S_FIELD_NUMBER: _ClassVar[int]
        QUEUE_S_FIELD_NUMBER: _ClassVar[int]
        tier: _types_pb2.Tier
        token_s: float
        queue_s: float
        def __init__(self, tier: _Optional[_Union[_types_pb2.Tier, str]] = ..., token_s: _Optional[float] = ..., queue_s: _Optional[float] = ...) -> None: ...
    PREFILL_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    prefill_token_s: float
    loads: _containers.RepeatedCompositeFieldContainer[LoadSpeeds.Load]
    def __init__(self, prefill_token_s: _Optional[float] = ..., loads: _Optional[_Iterable[_Union[LoadSpeeds.Load, _Mapping]]] = ...) -> None: ...

class RunStepEvent(_message.Message):
    __slots__ = ("tokens", "finished", "invitation", "handed_over", "receiver_lost")
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
        __slots__ = ("reason", "usage", "hidden", "speeds")
        REASON_FIELD_NUMBER: _ClassVar[int]
        USAGE_FIELD_NUMBER: _ClassVar[int]
        HIDDEN_FIELD_NUMBER: _ClassVar[int]
        SPEEDS_FIELD_NUMBER: _ClassVar[int]
        reason: _types_pb2.FinishReason
        usage: _types_pb2.Usage
        hidden: bytes
        speeds: LoadSpeeds
        def __init__(self, reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ..., hidden: _Optional[bytes] = ..., speeds: _Optional[_Union[LoadSpeeds, _Mapping]] = ...) -> None: ...
    class Invitation(_message.Message):
        __slots__ = ("ticket",)
        TICKET_FIELD_NUMBER: _ClassVar[int]
        ticket: bytes
        def __init__(self, ticket: _Optional[bytes] = ...) -> None: ...
    class ReceiverLost(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_LOST_FIELD_NUMBER: _ClassVar[int]
    tokens: RunStepEvent.Tokens
    finished: RunStepEvent.Finished
    invitation: RunStepEvent.Invitation
    handed_over: RunStepEvent.Tokens
    receiver_lost: RunStepEvent.ReceiverLost
    def __init__(self, tokens: _Optional[_Union[RunStepEvent.Tokens, _Mapping]] = ..., finished: _Optional[_Union[RunStepEvent.Finished, _Mapping]] = ..., invitation: _Optional[_Union[RunStepEvent.Invitation, _Mapping]] = ..., handed_over: _Optional[_Union[RunStepEvent.Tokens, _Mapping]] = ..., receiver_lost: _Optional[_Union[RunStepEvent.ReceiverLost, _Mapping]] = ...) -> None: ...

class RunStepsRequest(_message.Message):
    __slots__ = ("actions",)
    class Begin(_message.Message):
        __slots__ = ("step", "metadata", "timeout_s")
        STEP_FIELD_NUMBER: _ClassVar[int]
        METADATA_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
        step: RunStepRequest
        metadata: _containers.RepeatedCompositeFieldContainer[_types_pb2.Header]
        timeout_s: float
        def __init__(self, step: _Optional[_Union[RunStepRequest, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_types_pb2.Header, _Mapping]]] = ..., timeout_s: _Optional[float] = ...) -> None: ...
    class Action(_message.Message):
        __slots__ = ("call", "begin", "cancel")
        CALL_FIELD_NUMBER: _ClassVar[int]
        BEGIN_FIELD_NUMBER: _ClassVar[int]
        CANCEL_FIELD_NUMBER: _ClassVar[int]
        call: int
        begin: RunStepsRequest.Begin
        cancel: _types_pb2.CallCancel
        def __init__(self, call: _Optional[int] = ..., begin: _Optional[_Union[RunStepsRequest.Begin, _Mapping]] = ..., cancel: _Optional[_Union[_types_pb2.CallCancel, _Mapping]] = ...) -> None: ...
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[RunStepsRequest.Action]
    def __init__(self, actions: _Optional[_Iterable[_Union[RunStepsRequest.Action, _Mapping]]] = ...) -> None: ...

class RunStepsResponse(_message.Message):
    __slots__ = ("events",)
    class Event(_message.Message):
        __slots__ = ("call", "event", "end")
        CALL_FIELD_NUMBER: _ClassVar[int]
        EVENT_FIELD_NUMBER: _ClassVar[int]
        END_FIELD_NUMBER: _ClassVar[int]
        call: int
        event: RunStepEvent
        end: _types_pb2.CallEnd
        def __init__(self, call: _Optional[int] = ..., event: _Optional[_Union[RunStepEvent, _Mapping]] = ..., end: _Optional[_Union[_types_pb2.CallEnd, _Mapping]] = ...) -> None: ...
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RunStepsResponse.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[RunStepsResponse.Event, _Mapping]]] = ...) -> None: ...

class RetireWorkflowRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class RetireWorkflowResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkerStatusResponse(_message.Message):
    __slots__ = ("worker_id", "running", "waiting", "store", "forecasts_applied", "engine_steps", "prefill_tokens_per_s", "access_updates_applied", "access_workflows", "predictor_reachable")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    FORECASTS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    ACCESS_UPDATES_APPLIED_FIELD_NUMBER: _ClassVar[int]
    ACCESS_WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_REACHABLE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    running: int
    waiting: int
    store: _store_pb2.StoreStat
    forecasts_applied: int
    engine_steps: int
    prefill_tokens_per_s: float
    access_updates_applied: int
    access_workflows: int
    predictor_reachable: bool
    def __init__(self, worker_id: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., store: _Optional[_Union[_store_pb2.StoreStat, _Mapping]] = ..., forecasts_applied: _Optional[int] = ..., engine_steps: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., access_updates_applied: _Optional[int] = ..., access_workflows: _Optional[int] = ..., predictor_reachable: _Optional[bool] = ...) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BlockPage(_message.Message):
    __slots__ = ("keys", "residencies")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    RESIDENCIES_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    residencies: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[bytes] = ..., residencies: _Optional[_Iterable[int]] = ...) -> None: ...

class ShelterRequest(_message.Message):
    __slots__ = ("paths",)
    class Path(_message.Message):
        __slots__ = ("namespace_digest", "tokens", "first_block")
        NAMESPACE_DIGEST_FIELD_NUMBER: _ClassVar[int]
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
        namespace_digest: bytes
        tokens: _types_pb2.PackedTokens
        first_block: int
        def __init__(self, namespace_digest: _Optional[bytes] = ..., tokens: _Optional[_Union[_types_pb2.PackedTokens, _Mapping]] = ..., first_block: _Optional[int] = ...) -> None: ...
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedCompositeFieldContainer[ShelterRequest.Path]
    def __init__(self, paths: _Optional[_Iterable[_Union[ShelterRequest.Path, _Mapping]]] = ...) -> None: ...

class ShelterResponse(_message.Message):
    __slots__ = ("blocks", "state")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_FULL: _ClassVar[ShelterResponse.State]
        STATE_HELD: _ClassVar[ShelterResponse.State]
        STATE_COPYING: _ClassVar[ShelterResponse.State]
    STATE_FULL: ShelterResponse.State
    STATE_HELD: ShelterResponse.State
    STATE_COPYING: ShelterResponse.State
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    state: ShelterResponse.State
    def __init__(self, blocks: _Optional[int] = ..., state: _Optional[_Union[ShelterResponse.State, str]] = ...) -> None: ...
