"""The policy in vLLM's own manager, where there is an environment with vLLM: `PBKV_VLLM_PYTHON` names its interpreter."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("PBKV_VLLM_PYTHON", "")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="PBKV_VLLM_PYTHON names no interpreter with vLLM")]


def _run(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PBKV_")}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([PYTHON, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_vllms_manager_and_the_policy_agree_after_any_history() -> None:
    ended = _run("tests/integrations/vllm_policy/in_vllm.py")
    assert ended.returncode == 0, ended.stderr[-4000:]


def test_another_version_of_vllm_is_refused_unless_forced() -> None:
    script = (
        "import vllm; vllm.__version__ = '0.99.0'\n"
        "from pbkv_cluster.integrations.vllm_policy.policy import PbkvCachePolicy; PbkvCachePolicy(8)"
    )
    refused = _run("-c", script)
    assert "vllm: version 0.99.0 was not tested, only 0.32, 0.33" in refused.stderr
    assert _run("-c", script, PBKV_PLUGINS_ANY_VERSION="true").returncode == 0
