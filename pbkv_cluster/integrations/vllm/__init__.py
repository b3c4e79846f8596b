"""The connector for vLLM: what one engine has computed, it and others load from the node's store. One flag switches it on:

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "PbkvConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "pbkv_cluster.integrations.vllm", "kv_load_failure_policy": "recompute"}'

vLLM makes one connector for its scheduler, and one in each worker. Between them pass a step's plan and a worker's report:

    connector.py        `PbkvConnector`: vLLM's hooks, each one line; which side does what
    options.py          the options of the connector, and what it refuses at the start: versions, models, settings
    scheduler_side.py   per step: what to load, what to store, from which blocks
    request_keys.py     the keys of a request's blocks: tokens, and all else that decides their KV
    adapters.py         what tells a LoRA adapter from others
    worker_side.py      per step: starts loads, copies new blocks to the store, reports what has arrived and what has failed
    block_layout.py     the KV of one block across all layers, as bytes and back; on any device
    namespaces.py       what else decides a block's bytes: weights, configuration, dtype, layout, rank
    messages.py         the plan, the report, and what a worker tells at the start
    block_events.py     vLLM's KV events for blocks that come to the store and leave it
    stats.py            vLLM's statistics and Prometheus metrics of the connector

`PbkvConnector` is imported when it is asked for, as that needs vLLM.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "PbkvConnector":
        from pbkv_cluster.integrations.vllm.connector import PbkvConnector

        return PbkvConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
