"""vLLM engines as processes of their own, in vLLM's environment."""

import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import pbkv_cluster

SCRIPT = Path(__file__).with_name("engine_process.py")
ANSWER = "ANSWER "
PYTHON = os.environ.get("PBKV_VLLM_PYTHON", "")
VOCABULARY = 2048


class VllmEngine:
    """Calls the methods of `engine_process.Engine` in another process."""

    def __init__(
        self, model: Path, log: Path, store: dict[str, Any] | None, is_multiprocess: bool, options: dict[str, Any]
    ) -> None:
        if store is not None:
            options["kv_transfer_config"] = {
                "kv_connector": "PbkvConnector",
                "kv_role": "kv_both",
                "kv_connector_module_path": "pbkv_cluster.integrations.vllm",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": store,
            }
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [PYTHON, str(SCRIPT), json.dumps({"model": str(model), "max_model_len": 4096, **options})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(pbkv_cluster.__file__).parents[1]),
                    "OMP_NUM_THREADS": "1",
                    "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(is_multiprocess)),
                    # vLLM gives each rank a NUMA node of its own unless it is told otherwise.
                    **({"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if options.get("tensor_parallel_size", 1) > 1 else {}),
                },
            )

    def wait(self) -> "VllmEngine":
        """Returns when the engine is ready."""
        assert self._answer() == "ready"
        return self

    def __call__(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def generate(self, *prompts: list[int], tokens: int = 12, salt: str = "") -> tuple[list[list[int]], list[int]]:
        """Output tokens and cached tokens of each prompt."""
        answer = self("generate", prompts=prompts, tokens=tokens, salt=salt)
        return answer["tokens"], answer["cached"]

    def outcomes(self) -> dict[str, int]:
        """Blocks of the store by outcome, as vLLM's own metrics show them."""
        prefix = "vllm:pbkv_blocks:"
        return {name.removeprefix(prefix): int(value) for name, value in self("metrics").items() if name.startswith(prefix)}

    def stop(self) -> int:
        """Ends the process as the end of its input does. Returns its status."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self._process.wait(60.0)

    def kill(self) -> None:
        """Ends the engine with all its processes, but not the node's store, whose session is another one."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(f"the engine has ended:\n{self.log.read_text()[-6000:]}")


@contextlib.contextmanager
def vllm(
    model: Path, log: Path, store: dict[str, Any] | None = None, is_multiprocess: bool = False, **options: Any
) -> Iterator[VllmEngine]:
    """An engine that is starting; with the connector if there are options of a store."""
    engine = VllmEngine(model, log, store, is_multiprocess, options)
    try:
        yield engine
    finally:
        engine.kill()


def prompt(seed: int, length: int) -> list[int]:
    """A prompt of random tokens."""
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def store_process(name: str) -> psutil.Process:
    """The process of the node's store of a name."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"pbkv_cluster.integrations.engine_store.node_store.process", name} <= set(process.info["cmdline"] or ())
    ]
    (process,) = found
    return process
