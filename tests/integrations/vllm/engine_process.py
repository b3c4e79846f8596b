"""A vLLM engine in a process of its own, run by the Python of vLLM's environment; takes commands as lines of JSON.

    python engine_process.py '{"model": "...", ...}'

Each line is [name of a method of `Engine`, arguments by name]; the answer is a line of JSON that begins with ANSWER.
"""

import json
import logging
import os
import signal
import sys
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
    VLLM_LOGGING_LEVEL="WARNING",
)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams
from vllm.config import KVEventsConfig

logging.basicConfig(level=logging.INFO)  # of our own loggers, in all processes of the engine

ANSWER = "ANSWER "


class Engine:
    """One `LLM`. All sampling is greedy."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._events: list[Any] = []
        if has_events := options.pop("kv_events", False):
            options["kv_events_config"] = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
        self._llm = LLM(
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            enable_prefix_caching=True,
            block_size=32,
            disable_log_stats=False,
            **options,
        )
        if has_events:
            core: Any = self._llm.llm_engine.engine_core
            core.engine_core.scheduler.kv_event_publisher.publish = lambda batch: self._events.extend(batch.events)

    def generate(self, prompts: list[list[int]], tokens: int, salt: str = "") -> dict[str, Any]:
        """Output tokens of each prompt, and how many of its tokens were cached, by vLLM or by the store."""
        extra = {"cache_salt": salt} if salt else {}
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        inputs: Any = [{"prompt_token_ids": prompt, **extra} for prompt in prompts]
        outputs = self._llm.generate(inputs, sampling, use_tqdm=False)
        return {
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
        }

    def reset(self, store: bool = False) -> bool:
        """Empties vLLM's own prefix cache, and the store's region, too, if asked to."""
        return bool(self._llm.reset_prefix_cache(reset_connector=store))

    def events(self) -> list[dict[str, Any]]:
        """vLLM's KV events since the last call, those of removed blocks without tokens."""
        taken, self._events = self._events, []
        return [
            {
                "type": type(event).__name__,
                "medium": event.medium,
                "hashes": [str(each) for each in event.block_hashes],
                "tokens": list(getattr(event, "token_ids", ())),
                "extra": [list(each or ()) for each in getattr(event, "extra_keys", None) or ()],
            }
            for event in taken
            if hasattr(event, "medium")  # not that all of vLLM's own cache has been cleared
        ]

    def metrics(self) -> dict[str, float]:
        """vLLM's counters and gauges; those with an outcome by name:outcome."""
        return {
            metric.name + (f":{metric.labels['outcome']}" if "outcome" in metric.labels else ""): metric.value
            for metric in self._llm.get_metrics()
            if hasattr(metric, "value")
        }

    def abort_while_loading(self, prompt: list[int]) -> bool:
        """Ends a request right after its load has begun. Returns whether it had."""
        engine = self._llm.llm_engine
        sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
        engine.add_request("aborted", {"prompt_token_ids": prompt}, sampling)
        worker = self._worker()
        started: list[int] = []
        original = worker.store.load

        def load(keys: Any, *rest: Any) -> Any:
            started.append(len(keys))
            return original(keys, *rest)

        worker.store.load = load
        try:
            engine.step()
        finally:
            del worker.store.load
        engine.abort_request(["aborted"])
        while engine.has_unfinished_requests():
            engine.step()
        return bool(started)

    def kill_at_next_load(self, pid: int) -> bool:
        """Kills a process when the first block of the next load arrives."""
        layout = self._worker().layout
        original = layout.write

        def write(block_id: int, payload: Any) -> None:
            layout.write = original
            os.kill(pid, signal.SIGKILL)
            original(block_id, payload)

        layout.write = write
        return True

    def store(self) -> dict[str, Any]:
        """This engine's region."""
        store = self._worker().store
        return {
            "owner": store.owner,
            "block_bytes": store.block_bytes,
            "found": store.region.found,
            "counts": dict(store.counts),
            "problem": store.problem,
        }

    def _worker(self) -> Any:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector: Any = get_kv_transfer_group()
        return connector.worker_side


def main() -> None:
    engine = Engine(json.loads(sys.argv[1]))
    print(ANSWER + json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(ANSWER + json.dumps(getattr(engine, name)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
