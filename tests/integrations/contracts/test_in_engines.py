"""Our plug-ins in the code of SGLang and LMCache, where `environment.sh` has unpacked them (`PBKV_ENGINES_FOLDER`)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.integrations.engine_store.engines import node, settings

ROOT = Path(__file__).resolve().parents[3]
PYTHON, FOLDER = os.environ.get("PBKV_VLLM_PYTHON", ""), os.environ.get("PBKV_ENGINES_FOLDER", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PYTHON and FOLDER), reason="PBKV_ENGINES_FOLDER and PBKV_VLLM_PYTHON name no engines"),
]


@pytest.mark.parametrize("script", ["sglang/in_sglang.py", "lmcache/in_lmcache.py"])
def test_the_engine_can_use_the_plug_in(script: str) -> None:
    packages = [str(Path(FOLDER) / name) for name in ("sglang", "lmcache", "orjson", "sortedcontainers")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PBKV_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *packages])
    with node(settings(region_bytes=4 << 20, arena_bytes=64 << 20)) as of:
        command = [PYTHON, f"tests/integrations/{script}", of.name]
        ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
