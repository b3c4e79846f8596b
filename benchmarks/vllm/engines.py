"""Our engine beside vLLM's on the CPU: the same random model, one thread each, prefill and batched decode."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from benchmarks.report import Figure, Report
from benchmarks.timing import in_turn, ratio
from benchmarks.vllm.benchmark import VOCABULARY, engine, make_model, tokens
from benchmarks.vllm.benchmark import Engine as VllmEngine

PREFILLS = (512, 2048)  # tokens of a new prompt
TOGETHER = (1, 8)  # decode: sequences in a batch
CONTEXT, OUTPUT = 1025, 33  # decode: tokens of each prompt, of which all but the last are cached, and of each output

Times = tuple[float, float]  # seconds that have passed, and seconds of processor time


def run(arguments: argparse.Namespace) -> Report:
    if not arguments.vllm:
        raise SystemExit("engine-vllm: name the Python of an environment with vLLM, --vllm PYTHON")
    rounds = 2 if arguments.quick else 6
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        size = make_model(Path(folder))
        theirs = stack.enter_context(engine(arguments.vllm, folder, {}))
        ours = _OurEngine(Path(folder))
        seeds = count()
        figures: list[Figure] = []
        for length in PREFILLS:

            def prompts(length: int = length) -> list[list[int]]:
                return tokens(next(seeds), length)

            figures += _compare(f"prefill of {length:,}", length, prompts, 1, False, ours, theirs, rounds)
        for number in TOGETHER:

            def contexts(number: int = number) -> list[list[int]]:
                return [tokens(next(seeds), CONTEXT)[0] for _ in range(number)]

            what = f"decode after {CONTEXT - 1:,}, {number} together"
            figures += _compare(what, number * OUTPUT, contexts, OUTPUT, True, ours, theirs, rounds)
    return Report(
        "engine-vllm",
        f"Llama of {size / 1e6:.0f} M parameters in float32 with random weights, vocabulary {VOCABULARY:,}; one thread each; "
        f"{rounds} rounds in turn",
        tuple(figures),
    )


class _OurEngine:
    """Our engine, in this process."""

    def __init__(self, path: Path) -> None:
        import torch

        from pbkv_cluster.core.clock import SystemClock
        from pbkv_cluster.core.config import CacheConfig, EngineConfig, ModelConfig
        from pbkv_cluster.core.tokens import BLOCK_TOKENS
        from pbkv_cluster.gpu_worker.engine.engine import Engine
        from pbkv_cluster.gpu_worker.model.loading import load_model
        from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner

        torch.set_num_threads(1)
        device = torch.device("cpu")
        self._model = load_model(ModelConfig(path=str(path)), device)
        blocks = 2 * max(TOGETHER) * (CONTEXT + OUTPUT) // BLOCK_TOKENS
        config = EngineConfig(gpu_blocks=blocks, host_blocks=0, device="cpu")
        runner = TorchRunner(self._model, config, device)
        runner.allocate()
        self._engine = Engine(runner, config, CacheConfig(), SystemClock(), lambda ids: "")
        self._numbers = count()

    def __call__(self, prompts: list[list[int]], output: int, is_cached: bool) -> Times:
        self._engine.cache.clear()
        if is_cached:
            self._run(prompts, 1)
        start, cpu = perf_counter(), process_time()
        self._run(prompts, output)
        return perf_counter() - start, process_time() - cpu

    def _run(self, prompts: list[list[int]], output: int) -> None:
        from pbkv_cluster.core.sampling import SamplingParams
        from pbkv_cluster.core.tokens import pack
        from pbkv_cluster.gpu_worker.engine.sequence import StepRequest

        sampling = SamplingParams(max_tokens=output, ignore_eos=True)
        for prompt in prompts:
            number = str(next(self._numbers))
            namespace = self._model.namespace()
            self._engine.submit(StepRequest(number, number, "agent", 0, namespace, pack(prompt), sampling))
        while self._engine.busy:
            self._engine.step()


def _compare(
    what: str,
    processed: int,
    prompts: Callable[[], list[list[int]]],
    output: int,
    is_cached: bool,
    ours: _OurEngine,
    theirs: VllmEngine,
    rounds: int,
) -> Iterator[Figure]:
    """Runs the same prompts on both, in turn."""
    cpu: dict[str, list[float]] = {"ours": [], "vllm": []}
    present: list[list[int]] = []

    def run_ours() -> float:
        present[:] = prompts()
        seconds, used = ours(present, output, is_cached)
        cpu["ours"].append(used)
        return seconds

    def run_theirs() -> float:
        found = theirs(present, output, is_cached)
        cpu["vllm"].append(float(found["cpu"]))
        return float(found["seconds"])

    in_turn(1, ours=run_ours, vllm=run_theirs)  # to warm up
    for samples in cpu.values():
        samples.clear()
    found = in_turn(rounds, ours=run_ours, vllm=run_theirs)
    yield Figure(f"{what}, our engine", processed / median(found["ours"]), "tokens/s")
    yield Figure(f"{what}, vLLM", processed / median(found["vllm"]), "tokens/s")
    yield Figure(f"{what}, ours over vLLM", ratio(found, "vllm", "ours"), "x", at_least=1.0)
    yield Figure(f"{what}, the same in processor time", ratio(cpu, "vllm", "ours"), "x")
