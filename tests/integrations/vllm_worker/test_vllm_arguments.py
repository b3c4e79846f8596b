"""What vLLM is started with: our settings, and `vllm.args`, each checked with its name in the error."""

from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.config import EngineConfig, load
from pbkv_cluster.core.errors import ConfigError, FailedPrecondition, InvalidArgument
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.integrations.vllm_worker.engine.arguments import check_block_size, engine_arguments
from pbkv_cluster.integrations.vllm_worker.engine.sampling import vllm_sampling

KNOWN = {"block_size", "enforce_eager", "kv_cache_memory_bytes", "kv_transfer_config", "num_gpu_blocks_override", "seed"}
FOLDER = Path("/models/small")


def arguments(cpu_memory: int | None = None, **flags: Any) -> dict[str, Any]:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return engine_arguments(
        load(flags={"engine.type": "vllm", **given}).config, FOLDER, KNOWN, cpu_memory, {"publisher": "zmq"}
    )


def test_settings_of_ours_decide_what_they_are_about() -> None:
    found = arguments(
        model__dtype="bfloat16",
        model__max_context_tokens=4096,
        engine__max_running=7,
        engine__max_batch_tokens=512,
        engine__gpu_memory_share=0.5,
    )
    assert found["model"] == "/models/small"
    assert (found["dtype"], found["max_model_len"]) == ("bfloat16", 4096)
    assert (found["max_num_seqs"], found["max_num_batched_tokens"]) == (7, 512)
    assert found["gpu_memory_utilization"] == 0.5
    assert "kv_cache_memory_bytes" not in found
    assert found["kv_events_config"] == {"publisher": "zmq"}
    assert "max_model_len" not in arguments()


def test_on_a_cpu_vllm_takes_as_much_of_the_free_memory_as_our_engine() -> None:
    found = arguments(cpu_memory=1000, engine__gpu_memory_share=0.5)
    assert (found["kv_cache_memory_bytes"], found["dtype"]) == (125, "float32")
    assert "gpu_memory_utilization" not in found
    assert arguments(1000, vllm__args={"kv_cache_memory_bytes": 7})["kv_cache_memory_bytes"] == 7
    assert "kv_cache_memory_bytes" not in arguments(1000, vllm__args={"num_gpu_blocks_override": 7})


def test_arguments_of_the_users_are_passed_on_also_from_text() -> None:
    assert arguments(vllm__args={"block_size": 32, "enforce_eager": True})["block_size"] == 32
    given = load(env={"PBKV_ENGINE_TYPE": "vllm", "PBKV_VLLM_ARGS": "{block_size: 64, kv_transfer_config: {kv_role: kv_both}}"})
    assert given.config.vllm.args == {"block_size": 64, "kv_transfer_config": {"kv_role": "kv_both"}}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("max_num_seqs", "is what engine.max_running sets"),
        ("model", "is what model.path sets"),
        ("kv_events_config", "is not to be set: the worker follows vLLM's KV events"),
        ("tensor_parallel_size", "is not to be set: a worker has one GPU"),
        ("blok_size", "vLLM has no such engine argument; did you mean block_size?"),
        ("nonsense", "vLLM has no such engine argument"),
    ],
)
def test_an_argument_that_cannot_be_set_is_refused_by_its_name(name: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^vllm\.args\.{name}: {why}"):
        arguments(vllm__args={name: 1})


def test_blocks_that_are_not_whole_ones_of_ours_are_refused() -> None:
    check_block_size(64)
    with pytest.raises(InvalidArgument, match=r"^vllm\.args\.block_size: must be a multiple of 16, .* it is 24$"):
        check_block_size(24)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"engine.type": "vllm", "engine.gpu_blocks": 64}, r"^engine\.gpu_blocks is for .*\.num_gpu_blocks_override$"),
        ({"engine.type": "vllm", "engine.host_blocks": 64}, r"engine\.host_blocks is for .* KV connector"),
        ({"engine.type": "vllm", "engine.allow_forced_output": True}, r"engine\.allow_forced_output is for"),
        ({"vllm.args": {"block_size": 32}}, r"vllm\.args and vllm\.python are for workers with engine\.type = vllm or mixed"),
        ({"vllm.workers": 1}, r"vllm\.workers is for engine\.type = mixed; with pbkv, all workers have the same engine"),
        ({"engine.type": "vllm", "vllm.workers": 1}, r"vllm\.workers is for engine\.type = mixed; with vllm, "),
        (
            {"engine.type": "mixed", "vllm.workers": 2, "cluster.workers": 2},
            r"vllm\.workers leaves no worker for our engine: it must be below cluster\.workers \(2\); engine\.type = vllm",
        ),
        (
            {"engine.type": "mixed", "vllm.workers": 1, "engine.allow_forced_output": True},
            r"engine\.allow_forced_output is for engine\.type = pbkv; with mixed, a step may go to vLLM",
        ),
        ({"engine.type": "mixed", "engine.prefill_chunk_tokens": 4096}, r"prefill_chunk_tokens must not exceed"),
        ({"engine.type": "vllm", "vllm.args": "[1"}, r"vllm\.args \(from flag\): must be YAML"),
        ({"engine.type": "sglang"}, r"engine\.type \(from flag\)"),
    ],
)
def test_settings_that_vllm_would_not_follow_are_refused(flags: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(flags=flags)


FOLLOWED = {"type", *(name for name, field in EngineConfig.model_fields.items() if "vLLM" in (field.description or ""))}
REFUSED: dict[str, Any] = {
    "ageing_s": 0,
    "allow_forced_output": True,
    "attention": "sdpa",
    "cached_ahead_s": 0,
    "copies": "batch",
    "disk_bytes": 1 << 30,
    "disk_path": "/disk",
    "gpu_blocks": 64,
    "hidden_dims": 0,
    "host_blocks": 0,
    "load_by_layer": False,
    "order": "arrival",
    "prefill_chunk_tokens": 512,
    "read_peers": False,
    "read_siblings": False,
    "tenant_weights": "a=2",
    "verify_share": 0,
}


@pytest.mark.parametrize("name", EngineConfig.model_fields)
def test_a_setting_of_the_engine_is_followed_or_refused_by_its_name(name: str) -> None:
    """Its description says which."""
    assert (name in FOLLOWED) != (name in REFUSED)
    if name in REFUSED:
        with pytest.raises(ConfigError, match=rf"engine\.{name} is for engine\.type = pbkv; with vllm, "):
            load(flags={"engine.type": "vllm", f"engine.{name}": REFUSED[name]})


def test_sampling_is_mapped() -> None:
    asked = SamplingParams(max_tokens=50, temperature=0.7, top_p=0.9, seed=2**64 - 1, stop=("x",), top_logprobs=3)
    assert vllm_sampling(asked, 20, {9, 4}) == {
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 2**63 - 1,
        "ignore_eos": False,
        "stop_token_ids": [4, 9],
        "logprobs": 3,
        "detokenize": False,
    }
    greedy = vllm_sampling(SamplingParams(ignore_eos=True, top_p=0.5), 20, {9, 4})
    assert (greedy["seed"], greedy["top_p"], greedy["stop_token_ids"], greedy["logprobs"]) == (None, 1.0, [], None)


def test_forced_output_is_refused_by_its_name() -> None:
    with pytest.raises(FailedPrecondition, match=r"^sampling\.forced_output: "):
        vllm_sampling(SamplingParams(forced_output=b"\0\0\0\0"), 20, set())


def test_beside_vllm_our_engine_has_all_its_settings() -> None:
    flags = {"engine.type": "mixed", "vllm.workers": 1, "vllm.args": {"block_size": 32}, "vllm.python": "/opt/vllm/bin/python"}
    of_ours = {"engine.host_blocks": 64, "engine.gpu_blocks": 32, "engine.tenant_weights": "a=2", "engine.read_siblings": False}
    config = load(flags={**flags, **of_ours}).config
    assert (config.engine.host_blocks, config.vllm.args) == (64, {"block_size": 32})
