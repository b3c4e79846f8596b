"""Writes down what our plug-ins rely on in other engines: `python -m tests.integrations.contracts.record ENGINE FOLDER`.

FOLDER is where the engine is installed, or its wheel unpacked. Nothing of it is run, only read. The result is a JSON file
beside this module, which CI compares our plug-ins with. When an engine has a new version: record it, look at the difference,
and test.
"""

import argparse
import ast
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

_VLLM = "vllm/v1/kv_offload"
_SGLANG = "sglang/srt/mem_cache"
_LMCACHE = "lmcache/v1"

RELIED_ON = {
    "vllm": {
        f"{_VLLM}/cpu/policies/base.py": ["CachePolicy", "ChunkStatus", "order_request_keys"],
        f"{_VLLM}/cpu/policies/factory.py": ["CachePolicyFactory"],
        f"{_VLLM}/base.py": ["ReqContext", "OffloadKey"],
        "vllm/v1/kv_hints/protocol.py": ["KvHintsEnvelope", "KvHintAction"],
        "vllm/v1/engine/async_llm.py": ["AsyncLLM"],
        "vllm/v1/engine/exceptions.py": ["EngineDeadError", "EngineGenerateError"],
        "vllm/v1/metrics/loggers.py": ["StatLoggerBase"],
        "vllm/v1/metrics/stats.py": ["RequestStateStats", "SchedulerStats"],
        "vllm/engine/arg_utils.py": ["AsyncEngineArgs", "EngineArgs"],
        "vllm/exceptions.py": ["VLLMClientError"],
        "vllm/inputs/engine.py": ["tokens_input"],
        "vllm/logprobs.py": ["Logprob"],
        "vllm/outputs.py": ["CompletionOutput", "RequestOutput"],
        "vllm/sampling_params.py": ["RequestOutputKind", "SamplingParams"],
    },
    "sglang": {
        f"{_SGLANG}/hicache_storage.py": [
            "HiCacheStorage",
            "HiCacheStorageConfig",
            "HiCacheStorageExtraInfo",
            "PoolHitPolicy",
            "PoolTransfer",
            "PoolTransferResult",
        ],
        f"{_SGLANG}/pool_host/base.py": ["HostKVCache"],
        f"{_SGLANG}/evict_policy.py": ["EvictionStrategy"],
        f"{_SGLANG}/radix_cache.py": ["TreeNode"],
        f"{_SGLANG}/utils.py": ["_EVICTION_POLICY_FACTORIES", "get_eviction_strategy"],
        "sglang/srt/arg_groups/choices.py": ["RADIX_EVICTION_POLICY_CHOICES", "add_radix_eviction_policy_choices"],
        "sglang/srt/plugins/__init__.py": ["GENERAL_PLUGINS_GROUP"],
    },
    "lmcache": {
        f"{_LMCACHE}/distributed/l2_adapters/base.py": ["L2AdapterInterface"],
        f"{_LMCACHE}/distributed/api.py": ["ObjectKey", "MemoryLayoutDesc"],
        f"{_LMCACHE}/distributed/internal_api.py": ["L2StoreResult"],
        f"{_LMCACHE}/memory_management.py": ["MemoryObj"],
        f"{_LMCACHE}/platform/event_notifier.py": ["EventNotifier", "create_event_notifier"],
        "lmcache/lmcache_native.pyi": ["Bitmap"],
    },
}


def contract(engine: str, folder: Path) -> dict[str, Any]:
    """What is relied on of an engine, by file and name.

    Raises:
        SystemExit: the folder has no such engine, or lacks something that is relied on.
    """
    files = {file: _names(folder / file, wanted) for file, wanted in RELIED_ON[engine].items()}
    return {"engine": engine, "version": _version(engine, folder), "files": files}


def class_of(source: Path, name: str) -> dict[str, Any]:
    """The methods and fields of a class, read from a source file."""
    found: dict[str, Any] = _names(source, [name])[name]
    return found


def _names(source: Path, wanted: list[str]) -> dict[str, Any]:
    found = dict[str, Any]()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in wanted:
            found[node.name] = _class(node)
        elif isinstance(node, ast.FunctionDef) and node.name in wanted:
            found[node.name] = _function(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in wanted:
                    found[target.id] = "value"
    if missing := set(wanted) - found.keys():
        raise SystemExit(f"{source} has no {', '.join(sorted(missing))}")
    return found


def _class(node: ast.ClassDef) -> dict[str, Any]:
    methods, fields = dict[str, Any](), list[str]()
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            methods.setdefault(each.name, _function(each))
            if each.name == "__init__":
                fields.extend(_set_on_self(each))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            fields.append(each.target.id)
        elif isinstance(each, ast.Assign):
            fields.extend(target.id for target in each.targets if isinstance(target, ast.Name))
    return {"methods": methods, "fields": sorted(set(fields))}


def _set_on_self(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    found = list[str]()
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.append(name)
    return found


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    required = len(names) - len(arguments.defaults)
    decorators = [ast.unparse(each).rpartition(".")[2] for each in node.decorator_list]
    return {
        "parameters": names,
        "required": required,
        "keyword_only": [each.arg for each in arguments.kwonlyargs],
        "abstract": "abstractmethod" in decorators,
        "property": "property" in decorators,
    }


def _version(engine: str, folder: Path) -> str:
    for metadata in folder.glob("*.dist-info/METADATA"):
        fields = dict(line.split(": ", 1) for line in metadata.read_text().split("\n\n")[0].splitlines() if ": " in line)
        if fields["Name"].replace("_", "-") in (engine, f"{engine}-cpu"):
            return fields["Version"]
    raise SystemExit(f"{folder} has no {engine}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(RELIED_ON))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    found = contract(options.engine, options.folder)
    name = f"{options.engine}-{found['version']}.json"
    (HERE / name).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
