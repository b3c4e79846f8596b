"""Runs a few tokens through a model, to see what its attention asks for instead of guessing it from the configuration.

Two things are learnt. From one token: the KV of each layer, and the window of its mask. From a few tokens, with attention
replaced by a function of each token alone: whether anything else in the model mixes tokens (recurrent or convolution state, or
rotary factors that follow the largest position of a batch). The cache keeps KV and nothing else, so such a model would continue
a cached prefix wrongly.
"""

import inspect
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION, PROBING
from pbkv_cluster.gpu_worker.kv.storage import KvShape
from pbkv_cluster.gpu_worker.model.hidden_state import captured
from pbkv_cluster.gpu_worker.model.refusal import reason_of, refusal
from pbkv_cluster.gpu_worker.model.rotary import RotarySwitch

# Greatest difference, relative to the greatest value, that batches of one shape make between results for one token.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_TOKENS = 7
_ATTEMPTS = 3  # rounding may send a token to another expert in one of them, state mixes tokens in each
_ROTARY = "query and key"


@dataclass(frozen=True, slots=True)
class Probed:
    """What a model's attention asks for."""

    shape: KvShape
    hidden: int  # values of a hidden state; 0: the model does not expose it
    windows: frozenset[int]  # of its sliding layers


class _Probe:
    """Stands in for a batch: records each layer's calls, and lets each token attend to itself alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, int | None]] = []

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        self.calls.append((layer, query, key, value, window))
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def probe(module: Any, device: torch.device, path: str, max_context: int, rotary: RotarySwitch | None) -> Probed:
    """Learns what the attention of `module` asks for.

    Args:
        module: a causal language model with paged attention.
        device: of the model.
        path: of the model, for errors.
        max_context: tokens; greater positions are never used.
        rotary: of the model, if its rotary factors switch.

    Raises:
        StartupError: the engine cannot run the model.
    """
    text = module.config.get_text_config(decoder=True)
    if getattr(text, "attention_chunk_size", None):
        raise refusal(path, "its attention is chunked")
    if getattr(text, "index_topk", None):
        raise refusal(path, "its attention is sparse: an index chooses which tokens a token attends to")
    module.set_attn_implementation(PROBING)
    try:
        probed = _one_token(module, device, path)
    finally:
        module.set_attn_implementation(IMPLEMENTATION)
    _tokens_alone(module, device, path, max_context, rotary)
    return probed


def _one_token(module: Any, device: torch.device, path: str) -> Probed:
    layers = module.config.get_text_config(decoder=True).num_hidden_layers
    batch = _Probe()
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    told = "position_ids" in inspect.signature(module.forward).parameters
    untold = "it cannot be told where in a sequence its tokens stand"
    try:
        with torch.inference_mode(), captured(module) as states:
            module(input_ids=ids, position_ids=ids, use_cache=False, paged=batch)
    except Exception as error:
        raise refusal(path, reason_of(error) if told else untold) from error
    seen = [layer for layer, *_ in batch.calls]
    if twice := sorted({layer for layer in seen if seen.count(layer) > 1}):
        raise refusal(path, f"layer {twice[0]} calls attention {seen.count(twice[0])} times")
    kinds = {(key.shape, value.shape, key.dtype) for _, _, key, value, _ in batch.calls}
    if sorted(seen) != list(range(layers)) or len(kinds) != 1:
        raise refusal(
            path,
            f"it needs attention with equal KV in each of the {layers} layers, found it in {len(seen)}, of {len(kinds)} kinds",
        )
    key, value, dtype = kinds.pop()
    if key != value:
        raise refusal(path, f"its keys are {tuple(key)}, its values {tuple(value)}")
    if not told:
        raise refusal(path, untold)
    return Probed(
        KvShape(layers=layers, kv_heads=key[1], head_dim=key[2], dtype=dtype),
        states[0].shape[-1] if states else 0,
        frozenset(window for *_, window in batch.calls if window is not None),
    )


def random_ids(module: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random token ids, without those that stand for images and the like."""
    configs = {id(config): config for config in (module.config, module.config.get_text_config(decoder=True))}.values()
    fields = [field for config in configs for field in config.to_dict().items()]
    special = [value for name, value in fields if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)]
    allowed = torch.ones(module.config.get_text_config(decoder=True).vocab_size)
    allowed[[value for value in special if 0 <= value < len(allowed)]] = 0
    if not allowed.any():
        allowed[:] = 1
    return allowed.nonzero()[:, 0][torch.randint(int(allowed.sum()), (count,), generator=generator)]


class _Output(NamedTuple):
    """What one part of the model has computed for the tokens of a batch."""

    part: str
    kind: str
    values: torch.Tensor  # [1, tokens, ...]


def _tokens_alone(module: Any, device: torch.device, path: str, max_context: int, rotary: RotarySwitch | None) -> None:
    """Refuses a model in which a token's result depends on other tokens in any way but attention."""
    found: list[_Output] = []
    for seed in range(_ATTEMPTS):
        try:
            with torch.inference_mode():
                difference = _first_difference(*_two_runs(module, seed, device, max_context, rotary))
        except Exception as error:
            raise refusal(path, reason_of(error)) from error
        if difference is None:
            return
        found.append(difference)
    first = found[0]
    if first.kind == _ROTARY or "rotary" in first.kind.lower() or "rope" in first.kind.lower():
        raise refusal(path, _rotary(module, max_context))
    raise refusal(
        path,
        f"{first.part} ({first.kind}) mixes tokens outside attention, by recurrent or convolution state or by what else "
        "is in the batch; cached KV alone cannot continue a prompt",
    )


def _two_runs(
    module: Any, seed: int, device: torch.device, max_context: int, rotary: RotarySwitch | None
) -> tuple[list[_Output], list[_Output], int]:
    """Outputs of two batches that have only one token and its position in common, and that token's index.

    That token's sequence is a short one; in the second batch, the others' are long.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = min(_TOKENS, max_context)
    row = tokens // 2
    near = list(range(tokens))
    far = [max_context - 1 - n for n in range(tokens)]
    far[row] = near[row]
    ids = random_ids(module, 2 * tokens, generator).view(2, tokens)
    ids[1, row] = ids[0, row]
    beside_short, beside_long = np.zeros(tokens, dtype=bool), np.arange(tokens) != row
    with rotary.chosen(beside_short) if rotary else nullcontext():
        first = _run(module, ids[0], near, device)
    with rotary.chosen(beside_long) if rotary else nullcontext():
        second = _run(module, ids[1], far, device)
    return first, second, row


def _run(module: Any, ids: torch.Tensor, positions: Sequence[int], device: torch.device) -> list[_Output]:
    """The outputs of all parts of the model, in order of completion; then queries and keys, and the logits."""
    outputs: list[_Output] = []

    def watch(name: str, part: torch.nn.Module) -> Any:
        def note(_module: Any, _args: Any, output: Any) -> None:
            outputs.extend(
                _Output(name, type(part).__name__, value)
                for value in (output if isinstance(output, tuple) else (output,))
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[:2] == (1, len(ids))
            )

        return part.register_forward_hook(note)

    batch = _Probe()
    handles = [watch(name, part) for name, part in module.named_modules() if name]
    try:
        result = module(
            input_ids=ids[None].to(device),
            position_ids=torch.tensor([list(positions)], device=device),
            use_cache=False,
            paged=batch,
        )
    finally:
        for handle in handles:
            handle.remove()
    rotated = [_Output(f"layer {layer}", _ROTARY, part[None]) for layer, query, key, *_ in batch.calls for part in (query, key)]
    return [*outputs, *rotated, _Output("the model", type(module).__name__, result.logits)]


def _first_difference(a: list[_Output], b: list[_Output], row: int) -> _Output | None:
    """The first part whose output for the token at `row` differs between two runs.

    A layer of torch itself, such as a projection, passes on what the part around it has mixed: that one is named.
    """
    different: list[_Output] = []
    others: dict[tuple[str, str], deque[torch.Tensor]] = {}
    for output in b:
        others.setdefault(output[:2], deque()).append(output.values)
    for output in a:
        if not (queue := others.get(output[:2])):
            continue  # an expert that one of the batches does not use
        x, y = output.values[0, row].double(), queue.popleft()[0, row].double()
        bound = _SAME.get(output.values.dtype, _SAME[torch.float32]) * float(x.nan_to_num(0, 0, 0).abs().max())
        if x.shape != y.shape or not torch.allclose(x, y, rtol=0, atol=bound, equal_nan=True):
            different.append(output)
    return next((output for output in different if not hasattr(torch.nn, output.kind)), different[0]) if different else None


def _rotary(module: Any, max_context: int) -> str:
    text = "its rotary factors follow the largest position of a batch, so that a prompt's KV would depend on its neighbours"
    parameters = getattr(module.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    switches = [kind.get("original_max_position_embeddings") for kind in kinds]
    if known := [switch for switch in switches if switch and switch < max_context]:
        text += f"; model.max_context_tokens: {min(known)} keeps all positions below the switch"
    return text
