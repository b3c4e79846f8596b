"""A KV connector for vLLM that loads and stores nothing, and writes down what requests tell it; run in vLLM's process."""

import json
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata


class RecordingConnector(KVConnectorBase_V1):
    """Appends a line of JSON for each request to the file that its extra configuration names."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._file = Path(vllm_config.kv_transfer_config.kv_connector_extra_config["file"])

    def on_new_request(self, request: Any) -> None:
        hints = request.kv_hints
        told = {
            "transfer": request.kv_transfer_params,
            "salt": request.cache_salt,
            "hints": [] if hints is None else [[each.action_type, each.payload["session_id"]] for each in hints.actions],
        }
        with self._file.open("a") as file:
            file.write(json.dumps(told) + "\n")

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass
