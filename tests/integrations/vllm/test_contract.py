"""The connector against what vLLM's hooks are in each version that it runs with, as recorded from their source."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import pbkv_cluster.integrations.vllm as package
from pbkv_cluster.integrations.vllm.options import TESTED_VERSIONS
from tests.integrations.vllm.contract import CONTRACTS, USED, methods_of

PACKAGE = Path(package.__file__).parent
RECORDED = {path.stem.removeprefix("vllm-"): json.loads(path.read_text()) for path in sorted(CONTRACTS.glob("*.json"))}
BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"

# What the connector reads of vLLM's objects.
READ = {
    ("vllm.v1.request", "Request"): {
        "all_token_ids",
        "block_hashes",
        "lora_request",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_tokens",
        "request_id",
    },
    ("vllm.v1.core.sched.output", "SchedulerOutput"): {
        "kv_connector_block_state",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
    },
    ("vllm.v1.core.sched.output", "KVConnectorBlockState"): {"get_block_ids"},
    ("vllm.v1.core.kv_cache_manager", "KVCacheBlocks"): {"get_block_ids"},
    ("vllm.v1.outputs", "KVConnectorOutput"): {"finished_recving", "invalid_block_ids", "kv_connector_worker_meta"},
    ("vllm.v1.kv_cache_interface", "KVCacheConfig"): {"kv_cache_groups", "num_blocks"},
    ("vllm.v1.kv_cache_interface", "KVCacheGroupSpec"): {"kv_cache_spec"},
    ("vllm.config.kv_transfer", "KVTransferConfig"): {
        "is_kv_consumer",
        "is_kv_producer",
        "kv_connector_extra_config",
        "kv_load_failure_policy",
    },
    ("vllm.v1.metrics.cache_hit_source", "CacheHitSource"): {"HOST"},
    ("vllm.distributed.kv_events", "BlockStored"): {
        "block_hashes",
        "block_size",
        "extra_keys",
        "lora_id",
        "lora_name",
        "medium",
        "parent_block_hash",
        "token_ids",
    },
    ("vllm.distributed.kv_events", "BlockRemoved"): {"block_hashes", "medium"},
    ("vllm.distributed.kv_transfer.kv_connector.v1.metrics", "KVConnectorPromMetrics"): {
        "_counter_cls",
        "_gauge_cls",
        "_histogram_cls",
        "per_engine_labelvalues",
    },
}


def classes(file: str) -> dict[str, ast.ClassDef]:
    body = ast.parse((PACKAGE / file).read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def test_every_tested_version_is_recorded() -> None:
    assert {version.rpartition(".")[0] for version in RECORDED} == set(TESTED_VERSIONS)


@pytest.mark.parametrize("version", RECORDED)
def test_every_name_that_is_imported_exists(version: str) -> None:
    imported = set()
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm."):
                imported |= {(node.module, alias.name) for alias in node.names}
    assert imported
    recorded = {(module, name) for module, names in RECORDED[version].items() for name in names}
    assert imported - recorded == set()
    assert {module for module, _ in recorded} == set(USED)


@pytest.mark.parametrize("version", RECORDED)
def test_hooks_take_what_vllm_passes(version: str) -> None:
    recorded = RECORDED[version][BASE]
    hooks = {**recorded["SupportsHMA"]["methods"], **recorded["KVConnectorBase_V1"]["methods"]}
    ours = methods_of(classes("connector.py")["PbkvConnector"])
    missing = {name for name, hook in hooks.items() if hook["is_abstract"]} - ours.keys()
    assert not missing
    unknown = {name for name in ours if not name.startswith("_")} - hooks.keys()
    assert not unknown, "vLLM has no such hooks"
    for name in ours.keys() & hooks.keys():
        assert called_alike(ours[name], hooks[name]), (name, ours[name], hooks[name])


@pytest.mark.parametrize("version", RECORDED)
def test_classes_between_scheduler_and_worker_are_complete(version: str) -> None:
    recorded = {name: node for names in RECORDED[version].values() for name, node in names.items()}
    for file in ("messages.py", "stats.py"):
        for node in classes(file).values():
            for base in (ast.unparse(each) for each in node.bases):
                hooks, ours = recorded[base]["methods"], methods_of(node)
                # What raises in the base is abstract, too, whatever it is marked as.
                assert {name for name, hook in hooks.items() if hook["is_abstract"]} <= ours.keys()
                for name in ours.keys() & hooks.keys():
                    assert called_alike(ours[name], hooks[name]), (node.name, name)


@pytest.mark.parametrize("version", RECORDED)
def test_what_is_read_of_vllms_objects_exists(version: str) -> None:
    for (module, name), attributes in READ.items():
        described = RECORDED[version][module][name]
        assert attributes <= {*described["fields"], *described["methods"]}, (name, attributes)


def called_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether a call that theirs takes is one that ours takes."""
    return (
        ours["kind"] == theirs["kind"]
        and ours["arguments"] == theirs["arguments"]
        and ours["optional"] >= theirs["optional"]
        and (ours["takes_more"] or not theirs["takes_more"])
    )
