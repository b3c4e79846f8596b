"""Runs every family of causal language models that `transformers` knows, and writes what became of each.

    python -m tests.gpu_worker.model_families --out docs/models.md

Each is built tiny and with random weights in float64, where rounding cannot turn one greedy choice into another. The engine's
greedy output, in chunks, batches and with cached prefixes, is compared with that of `transformers.generate`.
"""

import argparse
import logging
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from tests.gpu_worker.engine_harness import make_engine, request, run

CPU = torch.device("cpu")
TOKENS = 8  # of each output
WINDOW = 24
CONTEXT = 160
PARAMETERS_MAX = 4_000_000  # of a tiny model

LAYERS = 4
LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")

# Sizes that make any family small: those of a configuration's fields that have these names.
SIZES: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # compressed attention
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 16,
    # state-space models
    "mamba_d_state": 8,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "ssm_state_size": 8,
    "state_size": 8,
    "chunk_size": 16,
    "num_heads": 4,
    "n_groups": 1,
    "expand": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # others' names
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "n_inner": 48,
    "rotary_dim": 4,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "attn_logit_softcapping": None,
}


# Fields of the configurations of single families.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"attn_logit_softcapping": 50.0},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {"use_sliding_window": True, "max_window_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "bert": {"is_decoder": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
}


SWITCH = 64  # tokens; the rotary factors of longer sequences differ
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": SWITCH,
}

# Families with other settings than their own.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "phi3 with longrope": (
        "phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": SWITCH, "sliding_window": None},
    ),
    "phimoe with longrope": (
        "phimoe",
        {"rope_parameters": {**_LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3}, "sliding_window": None},
    ),
    "llama with longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "llama with dynamic NTK": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
}

# `transformers` keeps their KV where the factors switch, and so gives other tokens with a cache than without one.
UNCACHED = ("llama with longrope",)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a family."""

    family: str
    outcome: str  # identical, refused, WRONG, not built
    reason: str = ""


def tiny_config(family: str, **fields: Any) -> Any:
    """A small configuration of a family."""
    from transformers import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[family]
    chosen = {**FIELDS.get(family, {}), **fields}
    default = kind()
    parts = getattr(kind, "sub_configs", {})
    text = [name for name in ("text_config", "decoder") if name in parts and getattr(default, name, None) is not None]
    if not text:
        return kind(**{**_sizes(default), **chosen})
    config = getattr(default, text[0])
    shrunk = {text[0]: {**_sizes(config), **chosen, "model_type": config.model_type}}
    for name in parts:
        if name not in text and (part := getattr(default, name, None)) is not None:
            shrunk[name] = {**_sizes(part, vision=True), "model_type": part.model_type}
    return kind(**shrunk)


def _sizes(config: Any, vision: bool = False) -> dict[str, Any]:
    renamed = {name for name, own in getattr(config, "attribute_map", {}).items() if own in vars(config)}
    known = {*vars(config), *renamed}
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads") if vision else SIZES
    sizes = {name: value for name, value in SIZES.items() if name in known and name in wanted}
    if "kv_lora_rank" in sizes:  # each head has KV of its own
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        sizes.pop("head_dim", None)
    if not vision:
        sizes |= {name: _few(getattr(config, name)) for name in LAYER_LISTS if name in vars(config)}
    return sizes


def _few(kinds: Sequence[str] | None) -> list[str] | None:
    """A list of few layers in which every kind of a model's layers occurs; None: as the configuration chooses."""
    distinct = list(dict.fromkeys(kinds or ()))
    return (distinct * LAYERS)[:LAYERS] if len(distinct) > 1 else None


def build(family: str, path: Path, seed: int = 0, **fields: Any) -> None:
    """Writes the checkpoint of a family or variant.

    Its weights are wide enough that attention matters, and none is what it starts as.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    family, own = VARIANTS.get(family, (family, {}))
    config = tiny_config(family, **own, **fields)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > PARAMETERS_MAX:
        raise ValueError(f"{size} parameters are left")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float64)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=1.5 / math.sqrt(parameter.shape[-1]))
            else:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)


def outputs(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The engine's output of each prompt: all in one batch and in chunks, and then again over what is cached."""
    engine = make_engine(model, gpu_blocks=96, prefill_chunk_tokens=32, max_batch_tokens=64)
    for _ in range(2):
        results = run(engine, *(request(model, str(n), list(p), max_tokens=TOKENS) for n, p in enumerate(prompts)))
    return [results[str(n)].tokens for n in range(len(prompts))]


def expected(path: Path, prompts: Sequence[Sequence[int]], use_cache: bool = True) -> list[list[int]]:
    """Greedy output of `transformers`, the end of sequence ignored."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(path, dtype=torch.float64).eval()
    model.set_experts_implementation("eager")  # the others have no float64
    model.generation_config.eos_token_id = None
    given = [torch.tensor([list(prompt)]) for prompt in prompts]
    out = [model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, use_cache=use_cache) for ids in given]
    return [[int(token) for token in row[0, ids.shape[1] :]] for row, ids in zip(out, given, strict=True)]


def sample_prompts(vocabulary: int) -> list[list[int]]:
    """Prompts of several lengths that share their beginnings. Most are longer than the window; one output passes the switch."""
    generator = random.Random(7)
    stem = [generator.randrange(3, vocabulary) for _ in range(CONTEXT)]
    return [stem[:5], stem[:70], [*stem[:40], *reversed(stem[:60])], stem[100:133], stem[: SWITCH - 3]]


def judge(family: str, path: Path, **model: Any) -> Verdict:
    """Compares engine and `transformers` on the checkpoint at `path`."""
    try:
        loaded = load_model(ModelConfig(path=str(path), dtype="float64", **model), CPU)
    except StartupError as error:
        return Verdict(family, "refused", str(error).replace(str(path), family))
    prompts = [prompt for prompt in sample_prompts(loaded.vocabulary) if len(prompt) + TOKENS <= loaded.max_context]
    got, wanted = outputs(loaded, prompts), expected(path, prompts, use_cache=family not in UNCACHED)
    return Verdict(family, "identical" if got == wanted else "WRONG")


def survey(families: Sequence[str]) -> Iterator[Verdict]:
    """Builds and judges each family."""
    for family in families:
        with tempfile.TemporaryDirectory() as path:
            try:
                build(family, Path(path))
            except Exception as error:  # noqa: BLE001 - a family may fail in any way: that is the finding
                yield Verdict(family, "not built", f"{type(error).__name__}: {error}")
                continue
            try:
                yield judge(family, Path(path))
            except Exception as error:  # noqa: BLE001
                yield Verdict(family, "WRONG", f"{type(error).__name__}: {error}")


def all_families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def page(verdicts: Sequence[Verdict]) -> str:
    """The document."""
    import transformers

    by = {
        outcome: [each for each in verdicts if each.outcome == outcome]
        for outcome in ("identical", "refused", "WRONG", "not built")
    }
    text = (
        (Path(__file__).parent / "models_page.md")
        .read_text()
        .format(
            version=transformers.__version__,
            total=len(verdicts) - len(by["not built"]),
            identical=len(by["identical"]),
            refused=len(by["refused"]),
            families=", ".join(f"`{each.family}`" for each in by["identical"]),
            reasons="\n".join(f"| `{each.family}` | {_cell(each)} |" for each in by["refused"]),
            unbuilt=", ".join(f"`{each.family}`" for each in by["not built"]) or "none",
        )
    )
    wrong = "".join(f"- **{each.family}: wrong** {each.reason}\n" for each in by["WRONG"])
    return text + (f"\n{wrong}" if wrong else "")


def _cell(verdict: Verdict) -> str:
    reason = verdict.reason.splitlines()[0]
    for prefix in (f"model.path: the engine cannot run {verdict.family!r}: ", "model.path: "):
        reason = reason.removeprefix(prefix)
    return reason.replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names in transformers, or of variants; by default all")
    parser.add_argument("--out", type=Path, help="file for the document")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    verdicts = []
    for verdict in survey(options.families or all_families()):
        verdicts.append(verdict)
        reason = (verdict.reason.splitlines() or [""])[0]
        print(f"{verdict.family:28} {verdict.outcome:10} {reason[:200]}", flush=True)
    if options.out:
        options.out.write_text(page(verdicts))
    return any(verdict.outcome == "WRONG" for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
