"""What the worker uses of vLLM against what was recorded of each version that it runs with."""

import ast
from pathlib import Path
from typing import Any

import pytest

import pbkv_cluster.integrations.vllm_worker as package
from pbkv_cluster.core.config import load
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.integrations.vllm_worker.engine.arguments import engine_arguments
from pbkv_cluster.integrations.vllm_worker.engine.sampling import vllm_sampling
from tests.integrations.contracts.test_contracts import RECORDED, theirs

ENGINE = ast.parse((Path(package.__file__).parent / "engine" / "llm.py").read_text())
VERSIONS = [name for name, content in RECORDED.items() if content["engine"] == "vllm"]

CALLS = {  # methods that the worker calls on the engine, with the arguments that it names
    "from_vllm_config": {"stat_loggers", "disable_log_stats"},
    "generate": {"priority", "kv_hints"},
    "abort": set[str](),
    "reset_prefix_cache": set[str](),
    "shutdown": set[str](),
    "errored": set[str](),
}
READ = {  # what it reads of vLLM's objects
    ("outputs.py", "RequestOutput"): {"outputs", "finished", "metrics", "num_cached_tokens"},
    ("outputs.py", "CompletionOutput"): {"token_ids", "logprobs", "finish_reason"},
    ("v1/metrics/stats.py", "RequestStateStats"): {
        "queued_ts",
        "scheduled_ts",
        "first_token_ts",
        "last_token_ts",
        "num_preemptions",
    },
    ("v1/metrics/stats.py", "SchedulerStats"): {"num_running_reqs"},
    ("vllm/logprobs.py", "Logprob"): {"logprob", "rank"},
    ("sampling_params.py", "RequestOutputKind"): {"DELTA"},
    ("kv_hints/protocol.py", "KvHintsEnvelope"): {"protocol_version", "message_id", "actions"},
    ("kv_hints/protocol.py", "KvHintAction"): {"action_id", "action_type", "action_version", "payload"},
}


def called(node: ast.AST, name: str) -> list[ast.Call]:
    return [
        each
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and getattr(each.func, "attr", getattr(each.func, "id", "")) == name
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_engine_has_the_methods_that_are_called(version: str) -> None:
    methods = theirs(version, "v1/engine/async_llm.py", "AsyncLLM")["methods"]
    for name, arguments in CALLS.items():
        assert arguments <= {*methods[name]["parameters"], *methods[name]["keyword_only"]}, name
    named = {keyword.arg for call in called(ENGINE, "generate") for keyword in call.keywords}
    assert named == CALLS["generate"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", READ, ids=lambda where: where[1])
def test_what_is_read_is_there(version: str, where: tuple[str, str]) -> None:
    assert READ[where] <= set(theirs(version, *where)["fields"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_argument_that_is_set_is_one_of_the_engines(version: str) -> None:
    known = theirs(version, "engine/arg_utils.py", "EngineArgs")["fields"]
    flags: dict[str, Any] = {"engine.type": "vllm", "model.max_context_tokens": 4096}
    for cpu_memory in (None, 1 << 30):
        found = engine_arguments(load(flags=flags).config, Path("/model"), known, cpu_memory, {})
        assert found.keys() <= set(known)
    for name in ("num_gpu_blocks_override", "kv_transfer_config", "long_prefill_token_threshold", "attention_config"):
        assert name in known  # messages and documents name it


@pytest.mark.parametrize("version", VERSIONS)
def test_sampling_parameters_are_vllms(version: str) -> None:
    known = set(theirs(version, "sampling_params.py", "SamplingParams")["fields"])
    assert vllm_sampling(SamplingParams(top_logprobs=1), 1, {1}).keys() | {"output_kind", "extra_args"} <= known


@pytest.mark.parametrize("version", VERSIONS)
def test_inputs_are_made_as_vllm_makes_them(version: str) -> None:
    function = theirs(version, "inputs/engine.py", "tokens_input")
    assert (function["parameters"], "cache_salt" in function["keyword_only"]) == (["prompt_token_ids"], True)
