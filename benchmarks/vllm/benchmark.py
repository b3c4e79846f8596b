"""What the connector saves vLLM where a prompt has left its cache, and what it costs where there is nothing to gain."""

import argparse
import json
import os
import random
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Figure, Report
from benchmarks.timing import in_turn, ratio

ROOT = Path(__file__).parents[2]
VOCABULARY = 8192
LONG = 4096  # tokens of the prompt that is repeated
SHORT, TOGETHER, OUTPUT = 512, 8, 32  # tokens of each of the prompts that run together, their number, tokens of each output
STORE_BYTES = 512 << 20


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("vllm").add_argument(
        "--vllm", metavar="PYTHON", help="interpreter of an environment that has vLLM for the CPU (make test-vllm makes one)"
    )


def run(arguments: argparse.Namespace) -> Report:
    if not arguments.vllm:
        raise SystemExit("vllm: name the Python of an environment with vLLM, --vllm PYTHON")
    rounds = 3 if arguments.quick else 15
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        size = make_model(Path(folder))
        alone = stack.enter_context(engine(arguments.vllm, folder, {}))
        ours = stack.enter_context(engine(arguments.vllm, folder, with_connector()))
        long = tokens(0, LONG)
        expected = alone(long, 1)["tokens"]
        assert ours(long, 1)["tokens"] == expected

        def repeated(call: "Engine", is_cached: bool) -> float:
            found = call(long, 1)
            assert found["tokens"] == expected
            assert (found["cached"] > 0) is is_cached
            return float(found["seconds"])

        again = in_turn(rounds, alone=lambda: repeated(alone, False), ours=lambda: repeated(ours, True))
        seeds = {"alone": iter(range(1, 10**6)), "ours": iter(range(1, 10**6))}

        def plain(call: "Engine", name: str) -> float:
            first = next(seeds[name]) * TOGETHER
            found = call([tokens(first + number, SHORT)[0] for number in range(TOGETHER)], OUTPUT)
            assert found["cached"] == 0
            cpu[name].append(float(found["cpu"]))
            return float(found["seconds"])

        cpu: dict[str, list[float]] = {"alone": [], "ours": []}
        in_turn(2, alone=lambda: plain(alone, "alone"), ours=lambda: plain(ours, "ours"))  # to warm up
        for samples in cpu.values():
            samples.clear()
        fresh = in_turn(2 * rounds, alone=lambda: plain(alone, "alone"), ours=lambda: plain(ours, "ours"))
    processed = TOGETHER * (SHORT + OUTPUT)
    details = [
        Figure(f"{what}, {name}, round {number}", seconds, "s")
        for what, samples in (("again", again), ("new", fresh), ("new in processor time", cpu))
        for name, found in samples.items()
        for number, seconds in enumerate(found)
    ]
    return Report(
        "vllm",
        f"Llama of {size / 1e6:.0f} M parameters in float32, one thread; medians of {rounds} rounds in turn, of new prompts "
        f"{2 * rounds}; {TOGETHER} new prompts of {SHORT} tokens together, {OUTPUT} tokens of output each",
        (
            Figure("a prompt of 4,096 tokens again, computed", median(again["alone"]), "s"),
            Figure("the same, loaded by the connector", median(again["ours"]), "s"),
            Figure("loaded over computed", ratio(again, "ours", "alone"), "x", at_most=0.15),
            Figure("new prompts, vLLM alone", processed / median(fresh["alone"]), "tokens/s"),
            Figure("new prompts, with the connector", processed / median(fresh["ours"]), "tokens/s"),
            Figure("throughput with the connector over vLLM alone", ratio(fresh, "alone", "ours"), "x", at_least=0.98),
            Figure("the same in processor time, all threads of an engine", ratio(cpu, "alone", "ours"), "x", at_least=0.98),
        ),
        tuple(details),
    )


class Engine:
    """An engine in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, prompts: list[list[int]], output: int, is_cached: bool = False) -> dict[str, Any]:
        """Runs prompts after vLLM's own cache has been emptied, or after it has computed just these. Returns seconds, output
        tokens and cached tokens.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": output, "is_cached": is_cached}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                found: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return found
        raise RuntimeError("the vLLM engine has ended")


@contextmanager
def engine(python: str, model: str, options: dict[str, Any]) -> Iterator[Engine]:
    """Starts an engine, and waits until it is ready."""
    command = [python, str(Path(__file__).with_name("child.py"))]
    limits = {"model": model, "max_model_len": LONG + 64, "max_num_batched_tokens": 2048}
    process = subprocess.Popen(
        [*command, json.dumps({**limits, **options})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        running = Engine(process)
        running.answer()
        yield running
    finally:
        process.kill()
        process.wait()


def with_connector() -> dict[str, Any]:
    """The connector, with a store of its own."""
    store = {
        "name": f"benchmark-{uuid.uuid4().hex}",
        "region_bytes": STORE_BYTES,
        "arena_bytes": STORE_BYTES + (16 << 20),
        "keep_s": 10.0,
    }
    transfer = {
        "kv_connector": "PbkvConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "pbkv_cluster.integrations.vllm",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": store,
    }
    return {"kv_transfer_config": transfer}


def tokens(seed: int, length: int) -> list[list[int]]:
    """One prompt of random tokens."""
    return [random.Random(seed).choices(range(VOCABULARY), k=length)]


def make_model(folder: Path) -> int:
    """Saves a Llama with random weights. Returns the number of its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2 * LONG,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
