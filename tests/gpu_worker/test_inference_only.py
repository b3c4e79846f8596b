"""What a worker's process loads to run a model, and that the model is the same."""

import subprocess
import sys
from pathlib import Path

RUN = """
import sys
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.gpu_worker.model.loading import load_model

ids = torch.arange(3, 40)[None]
for path in sys.argv[2:]:
    if sys.argv[1] == "worker":
        load_model(ModelConfig(path=path), torch.device("cpu"))
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = plain(input_ids=ids).logits
    print([bytes(logits.numpy().tobytes()).hex(), {name: float(each.double().sum()) for name, each in plain.named_buffers()}])
print([name for name in ("torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor") if name in sys.modules])
"""
COMPILE = """
import sys
import torch
from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.gpu_worker.model.loading import load_model

load_model(ModelConfig(path=sys.argv[1]), torch.device("cpu"))
calls = []

def count(module, inputs):
    calls.append(module)
    return module

print(torch.compile(lambda x: x * 2 + 1, backend=count)(torch.ones(2)).tolist(), len(calls), hasattr(torch._dynamo, "config"))
"""
SYMBOLIC = """
import sys
import torch
from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.gpu_worker.model.loading import load_model

load_model(ModelConfig(path=sys.argv[1]), torch.device("cpu"))
print("sympy" in sys.modules)
"""


def run(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_worker_loads_no_compiler_and_no_distributed_tensors_and_computes_the_same(model_dirs: dict[str, Path]) -> None:
    paths = [str(model_dirs["llama"]), str(model_dirs["mistral"])]
    *expected, plain = run(RUN, "plain", *paths)
    *found, worker = run(RUN, "worker", *paths)
    assert found == expected
    assert worker == "[]" != plain


def test_the_compiler_loads_when_somebody_compiles(model_dirs: dict[str, Path]) -> None:
    assert run(COMPILE, str(model_dirs["llama"])) == ["[3.0, 3.0] 1 True"]


def test_building_a_model_loads_no_symbolic_mathematics(model_dirs: dict[str, Path]) -> None:
    assert run(SYMBOLIC, str(model_dirs["llama"])) == ["False"]
