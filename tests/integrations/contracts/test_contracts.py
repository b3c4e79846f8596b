"""Our plug-ins against what was recorded of the engines that load them: whether they have what is asked for."""

import json
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.engine_versions import TESTED, check_version
from tests.integrations.contracts.record import HERE, class_of

ROOT = Path(__file__).resolve().parents[3]
OURS = ROOT / "pbkv_cluster" / "integrations"
PLUG_INS = {  # our file and class, the engine, its file and class
    "vLLM's cache policy": ("vllm_policy/policy.py", "PbkvCachePolicy", "vllm", "cpu/policies/base.py", "CachePolicy"),
    "vLLM's statistics": (
        "vllm_worker/engine/llm.py",
        "_LoadReader",
        "vllm",
        "v1/metrics/loggers.py",
        "StatLoggerBase",
    ),
    "SGLang's storage": ("sglang/hicache.py", "PbkvHiCache", "sglang", "hicache_storage.py", "HiCacheStorage"),
    "SGLang's eviction": ("sglang/plugin.py", "PbkvLfuStrategy", "sglang", "evict_policy.py", "EvictionStrategy"),
    "LMCache's second level": ("lmcache/adapter.py", "PbkvL2Adapter", "lmcache", "l2_adapters/base.py", "L2AdapterInterface"),
}
STAND_INS = {  # what we describe of their classes by a Protocol of ours
    "a request's context": ("vllm_policy/request.py", "RequestContext", "vllm", "base.py", "ReqContext"),
    "a chunk": ("vllm_policy/advisor.py", "Chunk", "vllm", "cpu/policies/base.py", "ChunkStatus"),
    "a pool": ("sglang/pages.py", "HostPool", "sglang", "pool_host/base.py", "HostKVCache"),
    "a node": ("sglang/aged_uses.py", "CountedNode", "sglang", "radix_cache.py", "TreeNode"),
    "an object's key": ("lmcache/object_stores.py", "ObjectKey", "lmcache", "distributed/api.py", "ObjectKey"),
    "a notifier": ("lmcache/tasks.py", "Notifier", "lmcache", "event_notifier.py", "EventNotifier"),
}


RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}


def cases(table: dict[str, tuple[str, str, str, str, str]]) -> list[Any]:
    """Each row of a table with each recorded version of its engine."""
    return [
        pytest.param(row, version, id=f"{name}-{version}")
        for name, row in table.items()
        for version, content in RECORDED.items()
        if content["engine"] == row[2]
    ]


def theirs(version: str, file: str, name: str) -> Any:
    """A copy, which may be changed."""
    files = RECORDED[version]["files"]
    (found,) = [content[name] for path, content in files.items() if path.endswith(file) and name in content]
    return deepcopy(found)


def problems(ours: Any, base: Any) -> list[str]:
    """Why a class of ours cannot stand where one of theirs is expected."""
    found = [
        f"{name} is missing" for name, method in base["methods"].items() if method["abstract"] and name not in ours["methods"]
    ]
    for name, own in ours["methods"].items():
        asked = base["methods"].get(name)
        if asked is None or name == "__init__":
            continue
        same = own["parameters"][: len(asked["parameters"])]
        if same != asked["parameters"]:
            found.append(f"{name} takes {own['parameters']}, not {asked['parameters']}")
        if own["required"] > asked["required"]:
            found.append(f"{name} needs {own['required']} arguments, and may get {asked['required']}")
    return found


@pytest.mark.parametrize(("row", "version"), cases(PLUG_INS))
def test_a_plug_in_does_what_its_engine_asks_for(row: tuple[str, ...], version: str) -> None:
    file, own, _, path, base = row
    assert problems(class_of(OURS / file, own), theirs(version, path, base)) == []


@pytest.mark.parametrize(("row", "version"), cases(STAND_INS))
def test_what_we_use_of_their_classes_is_there(row: tuple[str, ...], version: str) -> None:
    file, own, _, path, base = row
    ours, found = class_of(OURS / file, own), theirs(version, path, base)
    assert ours["methods"].keys() <= found["methods"].keys()
    known = {*found["fields"], *(name for name, method in found["methods"].items() if method["property"])}
    assert set(ours["fields"]) <= known | ({"ref_cnt"} if "_fields_" in known else set())  # a ctypes structure names it there
    for method, own_method in ours["methods"].items():
        assert own_method["parameters"] == found["methods"][method]["parameters"], method


@pytest.mark.parametrize("change", ["a method more", "a parameter less", "another name"])
def test_a_change_of_the_contract_is_seen(change: str) -> None:
    file, own, _, path, base = PLUG_INS["vLLM's cache policy"]
    changed = theirs("vllm-0.32.0", path, base)
    if change == "a method more":
        changed["methods"]["rename"] = {**changed["methods"]["clear"], "abstract": True}
    elif change == "a parameter less":
        changed["methods"]["touch"] = {**changed["methods"]["touch"], "parameters": ["self", "keys"], "required": 2}
    else:
        changed["methods"]["evict"]["parameters"][1] = "count"
    assert len(problems(class_of(OURS / file, own), changed)) == 1


def test_the_recorded_versions_are_those_that_are_accepted() -> None:
    for content in RECORDED.values():
        check_version(content["engine"], content["version"], any_version=False)
    for engine, versions in TESTED.items():
        assert all(any(name.startswith(f"{engine}-{version}") for name in RECORDED) for version in versions)


@pytest.mark.parametrize("found", ["0.31.0", "0.320", "0.34.0", "1.0.32", ""])
def test_other_versions_are_refused_unless_all_are_wanted(found: str) -> None:
    with pytest.raises(
        InvalidArgument, match=r"vllm: version .* was not tested, only 0\.32, 0\.33; PBKV_PLUGINS_ANY_VERSION=true"
    ):
        check_version("vllm", found, any_version=False)
    check_version("vllm", found, any_version=True)


def test_versions_in_the_documentation_are_those_that_are_accepted() -> None:
    text = (ROOT / "docs" / "integrations.md").read_text()
    for engine, versions in TESTED.items():
        for version in versions:
            assert f"{engine} {version}" in text.lower(), f"docs/integrations.md does not name {engine} {version}"


def test_sglang_finds_the_plug_in_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["sglang.srt.plugins"] == {"pbkv": "pbkv_cluster.integrations.sglang.plugin:register"}
