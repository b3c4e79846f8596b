"""What surrounds vLLM in a worker's process."""

from pathlib import Path

import pytest

from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.integrations.vllm_worker.environment import event_sockets, set_environment


def test_plug_ins_in_vllm_load_the_settings_of_the_cluster(tmp_path: Path) -> None:
    """From a file, whatever set them: here a flag, and a variable that is gone then."""
    flags = {
        "engine.type": "vllm",
        "vllm.python": "/opt/vllm/bin/python",
        "vllm.args": {"block_size": 32, "kv_transfer_config": {"kv_role": "kv_both"}},
        "vllm.max_workflows": 77,
        "model.path": "/models/small",
    }
    environment = {"PBKV_CACHE_POLICY": "lru", "HOME": "/root"}
    config = load(env=environment, flags=flags).config
    set_environment(config, "127.0.0.1", tmp_path, environment)
    loaded = load(env=environment).config
    assert environment["HOME"] == "/root"
    assert "PBKV_CACHE_POLICY" not in environment
    for part in ("cache", "plugins", "predictor", "security", "vllm"):
        assert getattr(loaded, part) == getattr(config, part)
    assert (loaded.cache.policy, loaded.engine.type) == ("lru", "vllm")


def test_plug_ins_in_vllm_keep_their_secrets_and_addresses(tmp_path: Path) -> None:
    kept = {"PBKV_API_KEY": "secret", "PBKV_TLS_CA": "system", "PBKV_REDIS_URL": "redis://:password@10.0.0.1:6379"}
    environment = {**kept, "PBKV_CLUSTER_WORKERS": "2"}
    set_environment(load(flags={"engine.type": "vllm"}).config, "10.0.0.7", tmp_path, environment)
    assert {name: value for name, value in environment.items() if name.startswith("PBKV_") and name != "PBKV_CONFIG"} == kept
    assert all("secret" not in file.read_text() and "password" not in file.read_text() for file in tmp_path.iterdir())
    assert load(env=environment).config.redis.url == kept["PBKV_REDIS_URL"]


def test_vllms_variables_are_set_but_for_those_that_the_user_has_set(tmp_path: Path) -> None:
    environment = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    set_environment(load(flags={"engine.type": "vllm", "engine.threads": 3}).config, "127.0.0.1", tmp_path, environment)
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert (environment["VLLM_HOST_IP"], environment["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn", "what is forked would not end with the worker"


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused() -> None:
    longest = Path("/" + "a" * 104)
    assert event_sockets(longest) == {"endpoint": f"ipc://{longest}/e", "replay_endpoint": f"ipc://{longest}/r"}
    with pytest.raises(StartupError, match=r"^TMPDIR: .* paths of 108 bytes, and 107 are possible"):
        event_sockets(Path("/" + "a" * 105))
