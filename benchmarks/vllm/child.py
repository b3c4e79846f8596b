"""One vLLM engine, run by the Python of vLLM's environment: times requests that come as lines of JSON."""

import json
import os
import sys
from time import perf_counter, process_time
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="2",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
    VLLM_LOGGING_LEVEL="WARNING",
)

from vllm import LLM, SamplingParams


def main() -> None:
    llm = LLM(
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        enable_prefix_caching=True,
        block_size=32,
        **json.loads(sys.argv[1]),
    )
    answer({})
    for line in sys.stdin:
        request = json.loads(line)
        llm.reset_prefix_cache()
        sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
        prompts: Any = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        if request["is_cached"]:
            once = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
            llm.generate(prompts, once, use_tqdm=False)
        start, cpu = perf_counter(), process_time()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu = perf_counter() - start, process_time() - cpu
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        answer({"seconds": seconds, "cpu": cpu, "tokens": tokens, "cached": cached})


def answer(what: dict[str, Any]) -> None:
    print("ANSWER " + json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
