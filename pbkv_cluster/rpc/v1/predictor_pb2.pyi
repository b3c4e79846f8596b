from pbkv_cluster.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_WORKFLOW_STARTED: _ClassVar[EventKind]
    EVENT_KIND_STEP_STARTED: _ClassVar[EventKind]
    EVENT_KIND_STEP_FINISHED: _ClassVar[EventKind]
    EVENT_KIND_TOOL_STARTED: _ClassVar[EventKind]
    EVENT_KIND_TOOL_FINISHED: _ClassVar[EventKind]
    EVENT_KIND_WORKFLOW_ENDED: _ClassVar[EventKind]
    EVENT_KIND_STEP_PLACED: _ClassVar[EventKind]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_WORKFLOW_STARTED: EventKind
EVENT_KIND_STEP_STARTED: EventKind
EVENT_KIND_STEP_FINISHED: EventKind
EVENT_KIND_TOOL_STARTED: EventKind
EVENT_KIND_TOOL_FINISHED: EventKind
EVENT_KIND_WORKFLOW_ENDED: EventKind
EVENT_KIND_STEP_PLACED: EventKind

class WorkflowEvent(_message.Message):
    __slots__ = ("kind", "workflow_id", "sequence", "time_s", "workload", "agent_id", "call_site", "step", "parent_step", "tool", "expected_s", "prompt_tokens", "output_tokens", "pieces", "words", "hidden", "worker_id", "step_graph")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_SITE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_GRAPH_FIELD_NUMBER: _ClassVar[int]
    kind: EventKind
    workflow_id: str
    sequence: int
    time_s: float
    workload: str
    agent_id: str
    call_site: str
    step: int
    parent_step: int
    tool: str
    expected_s: float
    prompt_tokens: int
    output_tokens: int
    pieces: _containers.RepeatedScalarFieldContainer[int]
    words: _containers.RepeatedScalarFieldContainer[int]
    hidden: bytes
    worker_id: str
    step_graph: _types_pb2.StepGraph
    def __init__(self, kind: _Optional[_Union[EventKind, str]] = ..., workflow_id: _Optional[str] = ..., sequence: _Optional[int] = ..., time_s: _Optional[float] = ..., workload: _Optional[str] = ..., agent_id: _Optional[str] = ..., call_site: _Optional[str] = ..., step: _Optional[int] = ..., parent_step: _Optional[int] = ..., tool: _Optional[str] = ..., expected_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., pieces: _Optional[_Iterable[int]] = ..., words: _Optional[_Iterable[int]] = ..., hidden: _Optional[bytes] = ..., worker_id: _Optional[str] = ..., step_graph: _Optional[_Union[_types_pb2.StepGraph, _Mapping]] = ...) -> None: ...

class ReportEventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[WorkflowEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[WorkflowEvent, _Mapping]]] = ...) -> None: ...

class ReportEventsResponse(_message.Message):
    __slots__ = ("accepted", "ignored", "instance")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    ignored: int
    instance: int
    def __init__(self, accepted: _Optional[int] = ..., ignored: _Optional[int] = ..., instance: _Optional[int] = ...) -> None: ...

class WatchForecastsRequest(_message.Message):
    __slots__ = ("subscriber", "access_model", "placed_only")
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    ACCESS_MODEL_FIELD_NUMBER: _ClassVar[int]
    PLACED_ONLY_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    access_model: bool
    placed_only: bool
    def __init__(self, subscriber: _Optional[str] = ..., access_model: _Optional[bool] = ..., placed_only: _Optional[bool] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("workflow_ids",)
    WORKFLOW_IDS_FIELD_NUMBER: _ClassVar[int]
    workflow_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workflow_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ForecastBatch(_message.Message):
    __slots__ = ("agents", "snapshot", "access_model", "workflow_ids", "epochs", "made_at_s", "predictabilities", "behind_steps", "ended", "step_counts", "workloads", "survivals", "agent_counts", "agent_positions", "probabilities")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ACCESS_MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_IDS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTABILITIES_FIELD_NUMBER: _ClassVar[int]
    BEHIND_STEPS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    SURVIVALS_FIELD_NUMBER: _ClassVar[int]
    AGENT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    AGENT_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedScalarFieldContainer[str]
    snapshot: bool
    access_model: bytes
    workflow_ids: _containers.RepeatedScalarFieldContainer[str]
    epochs: _containers.RepeatedScalarFieldContainer[int]
    made_at_s: _containers.RepeatedScalarFieldContainer[float]
    predictabilities: _containers.RepeatedScalarFieldContainer[float]
    behind_steps: _containers.RepeatedScalarFieldContainer[int]
    ended: _containers.RepeatedScalarFieldContainer[bool]
    step_counts: _containers.RepeatedScalarFieldContainer[int]
    workloads: _containers.RepeatedScalarFieldContainer[str]
    survivals: _containers.RepeatedScalarFieldContainer[float]
    agent_counts: _containers.RepeatedScalarFieldContainer[int]
    agent_positions: _containers.RepeatedScalarFieldContainer[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, agents: _Optional[_Iterable[str]] = ..., snapshot: _Optional[bool] = ..., access_model: _Optional[bytes] = ..., workflow_ids: _Optional[_Iterable[str]] = ..., epochs: _Optional[_Iterable[int]] = ..., made_at_s: _Optional[_Iterable[float]] = ..., predictabilities: _Optional[_Iterable[float]] = ..., behind_steps: _Optional[_Iterable[int]] = ..., ended: _Optional[_Iterable[bool]] = ..., step_counts: _Optional[_Iterable[int]] = ..., workloads: _Optional[_Iterable[str]] = ..., survivals: _Optional[_Iterable[float]] = ..., agent_counts: _Optional[_Iterable[int]] = ..., agent_positions: _Optional[_Iterable[int]] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class AccessStep(_message.Message):
    __slots__ = ("number", "agent_id", "came_from", "follows", "began_at_s", "runs", "symbol", "output_blocks", "ended_at_s", "repeats", "repeats_to")
    class Run(_message.Message):
        __slots__ = ("blocks", "sharing", "key")
        BLOCKS_FIELD_NUMBER: _ClassVar[int]
        SHARING_FIELD_NUMBER: _ClassVar[int]
        KEY_FIELD_NUMBER: _ClassVar[int]
        blocks: int
        sharing: int
        key: int
        def __init__(self, blocks: _Optional[int] = ..., sharing: _Optional[int] = ..., key: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    CAME_FROM_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_S_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    REPEATS_TO_FIELD_NUMBER: _ClassVar[int]
    number: int
    agent_id: str
    came_from: int
    follows: int
    began_at_s: float
    runs: _containers.RepeatedCompositeFieldContainer[AccessStep.Run]
    symbol: int
    output_blocks: int
    ended_at_s: float
    repeats: int
    repeats_to: int
    def __init__(self, number: _Optional[int] = ..., agent_id: _Optional[str] = ..., came_from: _Optional[int] = ..., follows: _Optional[int] = ..., began_at_s: _Optional[float] = ..., runs: _Optional[_Iterable[_Union[AccessStep.Run, _Mapping]]] = ..., symbol: _Optional[int] = ..., output_blocks: _Optional[int] = ..., ended_at_s: _Optional[float] = ..., repeats: _Optional[int] = ..., repeats_to: _Optional[int] = ...) -> None: ...

class AccessLog(_message.Message):
    __slots__ = ("workflow_id", "workload", "steps")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    workload: str
    steps: _containers.RepeatedCompositeFieldContainer[AccessStep]
    def __init__(self, workflow_id: _Optional[str] = ..., workload: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[AccessStep, _Mapping]]] = ...) -> None: ...

class ReportAccessRequest(_message.Message):
    __slots__ = ("logs",)
    LOGS_FIELD_NUMBER: _ClassVar[int]
    logs: _containers.RepeatedCompositeFieldContainer[AccessLog]
    def __init__(self, logs: _Optional[_Iterable[_Union[AccessLog, _Mapping]]] = ...) -> None: ...

class ReportAccessResponse(_message.Message):
    __slots__ = ("accepted", "dropped")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    dropped: int
    def __init__(self, accepted: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("workload", "steps_begun", "output_known", "predictability", "steps", "experts")
    class Agent(_message.Message):
        __slots__ = ("agent_id", "probability")
        AGENT_ID_FIELD_NUMBER: _ClassVar[int]
        PROBABILITY_FIELD_NUMBER: _ClassVar[int]
        agent_id: str
        probability: float
        def __init__(self, agent_id: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...
    class Step(_message.Message):
        __slots__ = ("agents", "survival")
        AGENTS_FIELD_NUMBER: _ClassVar[int]
        SURVIVAL_FIELD_NUMBER: _ClassVar[int]
        agents: _containers.RepeatedCompositeFieldContainer[ExplainResponse.Agent]
        survival: float
        def __init__(self, agents: _Optional[_Iterable[_Union[ExplainResponse.Agent, _Mapping]]] = ..., survival: _Optional[float] = ...) -> None: ...
    class Expert(_message.Message):
        __slots__ = ("name", "weights", "steps")
        NAME_FIELD_NUMBER: _ClassVar[int]
        WEIGHTS_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        name: str
        weights: _containers.RepeatedScalarFieldContainer[float]
        steps: _containers.RepeatedCompositeFieldContainer[ExplainResponse.Step]
        def __init__(self, name: _Optional[str] = ..., weights: _Optional[_Iterable[float]] = ..., steps: _Optional[_Iterable[_Union[ExplainResponse.Step, _Mapping]]] = ...) -> None: ...
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    STEPS_BEGUN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_KNOWN_FIELD_NUMBER: _ClassVar[int]
    PREDICTABILITY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    steps_begun: int
    output_known: bool
    predictability: float
    steps: _containers.RepeatedCompositeFieldContainer[ExplainResponse.Step]
    experts: _containers.RepeatedCompositeFieldContainer[ExplainResponse.Expert]
    def __init__(self, workload: _Optional[str] = ..., steps_begun: _Optional[int] = ..., output_known: _Optional[bool] = ..., predictability: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[ExplainResponse.Step, _Mapping]]] = ..., experts: _Optional[_Iterable[_Union[ExplainResponse.Expert, _Mapping]]] = ...) -> None: ...
