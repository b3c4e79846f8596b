"""All metrics by name. `docs/metrics.md` is written from this file; a member may expose no other.

Every label has a bounded number of values: `tier`, `source` and `target` are gpu, host, sibling, remote or disk; `reason` is a
reason code; `worker` and `member` are members of the cluster, and `worker` is an engine at a sidecar; `workload` is the name
that clients give to an application, of which the first `metrics.max_workloads` are told apart and the rest are `other`. No
label is the id of a workflow, a prompt, an agent or a tenant.
"""

from pbkv_cluster.core.metrics.metric import Metric, MetricList, Source

_METRICS = MetricList()
_counter, _gauge, _histogram = _METRICS.counter, _METRICS.gauge, _METRICS.histogram
_ALL, _HEAD, _GATEWAY, _WORKER, _PREDICTOR, _HOST_STORE, _OTEL, _SIDECAR = Source

# --- every process ---

BUILD_INFO = _gauge("pbkv_build_info", "1; the version is a label", _ALL, labels=("version",))

# --- the process that runs the cluster ---

MEMBER_UP = _gauge("pbkv_member_up", "1 while a member serves, 0 while it is being restarted", _HEAD, labels=("member",))
MEMBER_RESTARTS = _counter(
    "pbkv_member_restarts_total", "Times that a member has ended and was restarted", _HEAD, labels=("member",)
)
STANDBY_READY = _gauge("pbkv_standby_ready", "1 while a standby is ready to take the place of the next member that ends", _HEAD)

# --- reachability ---

REDIS_REACHABLE = _gauge(
    "pbkv_redis_reachable", "1 if Redis answered the last call", _HEAD, _GATEWAY, _WORKER, _PREDICTOR, _HOST_STORE, _OTEL
)
PREDICTOR_REACHABLE = _gauge(
    "pbkv_predictor_reachable",
    "1 if the predictor answered the last call, or its broadcast arrives",
    *(_GATEWAY, _SIDECAR, _WORKER, _OTEL),
)
PROBLEMS = _gauge(
    "pbkv_problems",
    "Things that do not work as they should while the member serves; `pbkv status` says which",
    *(_WORKER, _PREDICTOR),
)
DIRECTORY_MALFORMED = _counter(
    "pbkv_directory_malformed_entries_total", "Entries in Redis that were skipped because they could not be read", _GATEWAY
)

# --- hit rate: prompt tokens, of steps that have finished ---

STEPS = _counter(
    "pbkv_steps_total", "Steps by outcome: finished, cancelled, failed, refused", _GATEWAY, _SIDECAR, labels=("outcome",)
)
PROMPT_TOKENS = _counter("pbkv_prompt_tokens_total", "Prompt tokens", _GATEWAY, _SIDECAR)
AVAILABLE_TOKENS = _counter(
    "pbkv_available_tokens_total", "Prompt tokens that an infinite cache would have had", _GATEWAY, _SIDECAR
)
CAPTURED_TOKENS = _counter(
    "pbkv_captured_tokens_total",
    "Prompt tokens that a tier of the chosen worker had when the step arrived",
    _GATEWAY,
    labels=("tier",),
)
DELIVERED_TOKENS = _counter(
    "pbkv_delivered_tokens_total",
    "Prompt tokens that a tier delivered, so that they were not computed",
    _GATEWAY,
    _SIDECAR,
    labels=("tier",),
)
COMPUTED_TOKENS = _counter("pbkv_computed_tokens_total", "Tokens computed in prefill, those computed again included", _GATEWAY)
GENERATED_TOKENS = _counter("pbkv_generated_tokens_total", "Output tokens", _GATEWAY, _SIDECAR)
WORKLOAD_STEPS = _counter("pbkv_workload_steps_total", "Steps that have finished", _GATEWAY, labels=("workload",))
WORKLOAD_PROMPT_TOKENS = _counter("pbkv_workload_prompt_tokens_total", "Prompt tokens", _GATEWAY, labels=("workload",))
WORKLOAD_AVAILABLE_TOKENS = _counter(
    "pbkv_workload_available_tokens_total",
    "Prompt tokens that an infinite cache would have had",
    _GATEWAY,
    labels=("workload",),
)
WORKLOAD_DELIVERED_TOKENS = _counter(
    "pbkv_workload_delivered_tokens_total", "Prompt tokens that any tier delivered", _GATEWAY, labels=("workload",)
)

# --- latency, as clients see it ---

TTFT_SECONDS = _histogram("pbkv_ttft_seconds", "From a step's arrival to its first output token", _GATEWAY, _SIDECAR)
STEP_SECONDS = _histogram("pbkv_step_seconds", "From a step's arrival to its end", _GATEWAY, _SIDECAR)
WORKFLOW_SECONDS = _histogram(
    "pbkv_workflow_seconds", "From a workflow's start to its end, pauses included", _GATEWAY, _SIDECAR
)
QUEUE_SECONDS = _histogram(
    "pbkv_queue_seconds",
    "Wait of finished steps in their worker's queue, by tenant: those in engine.tenant_weights, unnamed, other",
    _GATEWAY,
    labels=("tenant",),
)
PHASE_SECONDS = _counter(
    "pbkv_step_phase_seconds_total",
    "Time of finished steps on their worker, by phase: queue, load, prefill, decode",
    _GATEWAY,
    labels=("phase",),
)

# --- gateway ---

OPEN_WORKFLOWS = _gauge("pbkv_open_workflows", "Open workflows that the member knows", _GATEWAY, _SIDECAR, _WORKER, _PREDICTOR)
STEPS_IN_FLIGHT = _gauge("pbkv_steps_in_flight", "Steps that were let in and have not ended", _GATEWAY, _SIDECAR)
STEPS_REFUSED = _counter(
    "pbkv_steps_refused_total",
    "Steps that were not let in, by the setting whose limit was reached",
    _GATEWAY,
    labels=("limit",),
)
GATEWAY_DECISIONS = _counter(
    "pbkv_gateway_decisions_total", "Decisions; those on routing begin with route_", _GATEWAY, _SIDECAR, labels=("reason",)
)
WORKER_STEPS = _gauge(
    "pbkv_worker_steps_in_flight", "Steps that the gateway has on a worker", _GATEWAY, _SIDECAR, labels=("worker",)
)
WORKER_TOKENS = _gauge(
    "pbkv_worker_tokens_in_flight",
    "Tokens that these were expected to compute and generate when placed",
    _GATEWAY,
    _SIDECAR,
    labels=("worker",),
)
WORKER_REACHABLE = _gauge(
    "pbkv_worker_reachable", "0 while a worker does not answer the gateway", _GATEWAY, _SIDECAR, labels=("worker",)
)
INDEX_BLOCKS = _gauge("pbkv_index_blocks", "Blocks in the gateway's copy of the cluster index", _GATEWAY)
INDEX_CURRENT = _gauge("pbkv_index_current", "1 while that copy is complete and follows Redis", _GATEWAY)
INDEX_REPAIRS = _counter(
    "pbkv_index_repairs_total", "Times that a worker's blocks were read again because a change was missed", _GATEWAY
)
EVENTS_QUEUED = _gauge("pbkv_events_queued", "Workflow events that wait for the predictor", _GATEWAY, _SIDECAR, _OTEL)
EVENTS_DROPPED = _counter(
    "pbkv_events_dropped_total", "Workflow events that the predictor will never get", _GATEWAY, _SIDECAR, _OTEL
)

# --- worker: engine ---

ENGINE_BATCHES = _counter("pbkv_engine_batches_total", "Forward passes of the model", _WORKER)
RUNNING_STEPS = _gauge("pbkv_running_steps", "Steps that have been admitted to the cache", _WORKER)
WAITING_STEPS = _gauge("pbkv_waiting_steps", "Steps in the worker's queue", _WORKER)
WAITING_TOKENS = _gauge("pbkv_waiting_tokens", "Tokens of these steps, cached ones included", _WORKER)
PREFILL_RATE = _gauge("pbkv_prefill_tokens_per_second", "Measured speed of prefill; 0 before the first", _WORKER)
SCHEDULER_DECISIONS = _counter("pbkv_scheduler_decisions_total", "Decisions on sequences", _WORKER, labels=("reason",))

# --- worker: cache ---

CACHE_BLOCKS = _counter(
    "pbkv_cache_blocks_total", "Decisions about blocks, in blocks, by reason code", _WORKER, labels=("reason",)
)
CACHE_NODES = _gauge("pbkv_cache_nodes", "Nodes of the prefix tree", _WORKER)
LEASED_BLOCKS = _gauge("pbkv_leased_blocks", "Cached blocks that clients have leased; once for each tenant", _WORKER)
TIER_CAPACITY_BYTES = _gauge("pbkv_tier_capacity_bytes", "Size of a tier", _WORKER, labels=("tier",))
TIER_USED_BYTES = _gauge("pbkv_tier_used_bytes", "Blocks of a tier that are cached or in use", _WORKER, labels=("tier",))
TIER_LOCKED_BYTES = _gauge("pbkv_tier_locked_bytes", "Blocks of a tier that running sequences use", _WORKER, labels=("tier",))
TIER_READY_BYTES = _gauge(
    "pbkv_tier_ready_bytes", "Blocks of a tier whose memory has been taken from the machine", _WORKER, labels=("tier",)
)
PINNED_BYTES = _gauge("pbkv_pinned_bytes", "Host memory that is pinned for copies to and from a GPU", _WORKER)
DAMAGED_BLOCKS = _counter("pbkv_damaged_blocks_total", "Blocks of host and disk that failed their check when loaded", _WORKER)
_ENDS = "; of these used, wasted, cancelled"
PREFETCHED_BLOCKS = _counter("pbkv_prefetched_blocks_total", f"Blocks loaded ahead{_ENDS}", _WORKER, labels=("outcome",))
STAGED_BLOCKS = _counter(
    "pbkv_staged_blocks_total", f"Blocks brought ahead to host memory{_ENDS}", _WORKER, labels=("reason", "outcome")
)
TRANSFER_BYTES = _counter("pbkv_transfer_bytes_total", "Bytes copied between tiers", _WORKER, labels=("source", "target"))
TRANSFER_SECONDS = _counter(
    "pbkv_transfer_seconds_total",
    "Time for which these copies ran; bytes per second of it are the bandwidth",
    _WORKER,
    labels=("source", "target"),
)
ROOM_WAIT_SECONDS = _counter("pbkv_room_wait_seconds_total", "Time that the engine waited for slots", _WORKER, labels=("tier",))
TRANSFERS_IN_FLIGHT = _gauge("pbkv_transfers_in_flight", "Copies between tiers that are not done", _WORKER)

# --- worker: guard. What the cache had, beside what LRU and the policy alone would have had ---

GUARD_LRU_ACTIVE = _gauge("pbkv_guard_lru_active", "1 while the policy costs more than LRU, so that LRU evicts", _WORKER)
GUARD_SWITCHES = _counter("pbkv_guard_switches_total", "Changes from the policy to LRU, and back", _WORKER)
GUARD_PROMPT_TOKENS = _counter("pbkv_guard_prompt_tokens_total", "Prompt tokens of the steps that were compared", _WORKER)
GUARD_HIT_TOKENS = _counter(
    "pbkv_guard_hit_tokens_total",
    "Of these, found in any tier by the cache, and by LRU or the policy alone, had either evicted from the start",
    _WORKER,
    labels=("order",),
)
GUARD_GPU_HIT_TOKENS = _counter("pbkv_guard_gpu_hit_tokens_total", "The same, found on the GPU", _WORKER, labels=("order",))
GUARD_EVICTED_BLOCKS = _counter(
    "pbkv_guard_evicted_blocks_total", "Blocks that left the GPU, by whose order", _WORKER, labels=("order",)
)
GUARD_SAVED_SECONDS = _gauge(
    "pbkv_guard_saved_seconds", "Prefill and loads that LRU alone would have cost more since the start; below 0: less", _WORKER
)

# --- worker: prediction ---

FORECASTS_APPLIED = _counter("pbkv_forecasts_applied_total", "Forecasts that changed a workflow of this worker", _WORKER)
FORECAST_AGE_SECONDS = _gauge("pbkv_forecast_age_seconds", "Since the latest forecast that has arrived was made", _WORKER)
ACCESS_LOGS = _counter(
    "pbkv_access_logs_total", "Access logs of ended workflows: sent, dropped, refused", _WORKER, labels=("outcome",)
)
MODEL_UPDATES = _counter("pbkv_model_updates_total", "Updates of the access models that were applied", _WORKER)

# --- predictor ---

PREDICTOR_EVENTS = _counter(
    "pbkv_predictor_events_total", "Workflow events: accepted, ignored", _PREDICTOR, labels=("outcome",)
)
FORECASTS_MADE = _counter("pbkv_forecasts_made_total", "Forecasts made for the broadcast", _PREDICTOR)
SUBSCRIBERS = _gauge("pbkv_forecast_subscribers", "Open subscriptions to the broadcast", _PREDICTOR)
SUBSCRIBERS_BEHIND = _counter(
    "pbkv_forecast_subscribers_behind_total", "Times that a subscriber was too slow for its queue", _PREDICTOR
)
FORECASTS_SCORED = _counter(
    "pbkv_forecasts_scored_total", "Forecasts of a next step, or the end, compared with what came", _PREDICTOR
)
FORECASTS_CORRECT = _counter("pbkv_forecasts_correct_total", "Of these, those whose likeliest outcome came", _PREDICTOR)
CALIBRATION_SCORED = _counter(
    "pbkv_forecast_calibration_scored_total",
    "The same forecasts by the probability of their likeliest outcome, up to the label",
    _PREDICTOR,
    labels=("probability",),
)
CALIBRATION_CORRECT = _counter(
    "pbkv_forecast_calibration_correct_total",
    "Of these, those whose likeliest outcome came",
    _PREDICTOR,
    labels=("probability",),
)
CONFIDENCE = _counter(
    "pbkv_forecast_confidence_total", "Sum of the probabilities of the likeliest outcomes: as many should have come", _PREDICTOR
)
WORKLOAD_ACCURACY = _gauge(
    "pbkv_workload_forecast_accuracy_ratio",
    "Share of a workload's latest forecasts whose likeliest outcome came",
    _PREDICTOR,
    labels=("workload",),
)
WORKLOAD_PREDICTABILITY = _gauge(
    "pbkv_workload_predictability_ratio",
    "How much a step's agent tells of the next one, 0 to 1",
    _PREDICTOR,
    labels=("workload",),
)
LEARNT_LOGS = _counter(
    "pbkv_predictor_access_logs_total", "Access logs: learnt, refused, dropped", _PREDICTOR, labels=("outcome",)
)

# --- host store ---

ARENA_CAPACITY_BYTES = _gauge("pbkv_arena_capacity_bytes", "Size of the node's arena", _HOST_STORE)
ARENA_REGION_BYTES = _gauge("pbkv_arena_region_bytes", "Region of a worker in the arena", _HOST_STORE, labels=("worker",))
ARENA_TAKEN_BYTES = _gauge("pbkv_arena_taken_bytes", "Memory of the arena that has been taken from the machine", _HOST_STORE)

# --- blocks between nodes ---

PEER_SERVED_BLOCKS = _counter(
    "pbkv_peer_served_blocks_total", "Blocks that other nodes asked for: served, absent", _HOST_STORE, labels=("outcome",)
)
PEER_REFUSALS = _counter(
    "pbkv_peer_refusals_total", "What other nodes were refused: connections, requests", _HOST_STORE, labels=("reason",)
)
PEER_READ_BLOCKS = _counter(
    "pbkv_peer_read_blocks_total",
    "Blocks asked of other nodes: read, absent, overwritten, damaged",
    _WORKER,
    labels=("outcome",),
)
PEER_FAILED_REQUESTS = _counter(
    "pbkv_peer_failed_requests_total", "Requests to other nodes that were refused or not answered", _WORKER
)

# --- receiver of spans ---

OTEL_NOTICES = _counter(
    "pbkv_otel_notices_total", "Spans, steps and workflows that were dropped or not understood", _OTEL, labels=("reason",)
)

# --- sidecar ---

SIDECAR_PASSED = _counter("pbkv_sidecar_passed_total", "Requests that are no steps, passed on as they were", _SIDECAR)
SIDECAR_FORECASTS = _counter("pbkv_sidecar_forecasts_total", "Forecasts of open workflows that have arrived", _SIDECAR)
SIDECAR_HINTS = _counter("pbkv_sidecar_hints_total", "Fields added to requests, by name", _SIDECAR, labels=("reason",))
SIDECAR_MISMATCHES = _counter(
    "pbkv_sidecar_token_mismatches_total", "Prompts of which an engine has counted other tokens than the tokenizer", _SIDECAR
)
ENGINE_BLOCKS = _gauge("pbkv_engine_blocks", "Blocks that an engine is known to hold", _SIDECAR, labels=("worker",))
ENGINE_EXACT = _gauge(
    "pbkv_engine_exact", "1 while all blocks that an engine holds are known, and no others", _SIDECAR, labels=("worker",)
)
KV_EVENT_GAPS = _counter(
    "pbkv_kv_event_gaps_total", "Times that KV events of an engine were missed", _SIDECAR, labels=("worker",)
)
KV_EVENT_RESTARTS = _counter("pbkv_kv_event_restarts_total", "Restarts of an engine", _SIDECAR, labels=("worker",))
KV_EVENT_MALFORMED = _counter(
    "pbkv_kv_event_malformed_total", "Messages of an engine that are no KV events", _SIDECAR, labels=("worker",)
)

ALL: tuple[Metric, ...] = tuple(_METRICS)
