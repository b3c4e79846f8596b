"""Runs prompts through the engine's path and through the model's own attention: both must give the same logits.

The probe sees what attention is called with; only this sees what comes out: with the loaded weights, on the device, through the
attention back end that will serve. Prompts are random and always the same:

- short, long, and long in chunks; the long one is longer than every sliding window, as far as the bounds below allow;
- several in one batch, with decodes; and one that goes on from blocks that another has computed;
- long over the model's own cache, whose windows come from the configuration and not from the mask;
- a short one at the end of the context, alone and beside one at its beginning: rotary factors may switch between the two.

What is allowed follows the dtype, and the noise of the model itself: how much its own attention differs between two ways to
compute the same (the whole prompt or its beginning, fused or eager kernels).

Time and memory are bounded. All cases run about `_PASSES` times the long prompt through the model, and `_FLOP` limits what that
costs: about 2 floating-point operations per parameter and token, so seconds on the device for a model of any size. The long
prompt also has at most `_LONGEST` tokens, its KV at most `_KV_BYTES`, and one layer's scores, which some implementations of
attention materialise, at most `_SCORE_BYTES`. Logits are computed for a few tokens of each prompt only. Windows that are longer
than the long prompt are covered by the probe, which evaluates the mask at the window's edges.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION, PagedBatch, Span
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.model.forward import forward
from pbkv_cluster.gpu_worker.model.probe import Probed, random_ids
from pbkv_cluster.gpu_worker.model.refusal import reason_of, refusal

log = logging.getLogger(__name__)

_FLOP = {"cpu": 4e11}  # by type of device
_FLOP_OTHER = 4e14
_PASSES = 6
_LONGEST = 4096 + 64  # tokens: more than the window of most models
_LONG = 96  # tokens of the long prompt where no window asks for more
_SHORT = 12  # tokens
_KV_BYTES = 1 << 30
_SCORE_BYTES = 1 << 29
_ROWS = 6  # tokens of a prompt whose logits are compared

# RMS difference of a token's logits over their deviation: always allowed, at most. Eager softmax is float32 even in float64.
_ALLOWED = {torch.float64: (1e-6, 1e-5), torch.float32: (3e-5, 1e-2), torch.float16: (1e-2, 0.15), torch.bfloat16: (5e-2, 0.4)}
_NOISE = 10.0  # times the model's own noise is allowed


def self_test(
    module: Any,
    probed: Probed,
    back_end: Callable[[KvStorage, Sequence[Span]], PagedBatch],
    own: str,
    path: str,
    max_context: int,
    device: torch.device,
) -> None:
    """Compares the engine's logits with the model's own.

    Args:
        module: a causal language model with paged attention.
        probed: what its attention asks for.
        back_end: attention of the engine.
        own: the model's own attention implementation.
        path: of the model, for errors.
        max_context: tokens.
        device: of the model.

    Raises:
        StartupError: they differ.
    """
    started = time.monotonic()
    test = _SelfTest(module, probed, back_end, own, max_context, device)
    try:
        with torch.inference_mode():
            failure = test.run()
    except Exception as error:
        raise refusal(path, f"the self-test fails, since {reason_of(error)}") from error
    finally:
        module.set_attn_implementation(IMPLEMENTATION)
    del test
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if failure:
        raise refusal(path, f"{failure}; model.self_test: off loads it all the same")
    log.info("self-test of %s: passed in %.1f s", path, time.monotonic() - started)


class _SelfTest:
    """The prompts, their logits by the model's own attention, and the cases that are compared with these."""

    def __init__(
        self,
        module: Any,
        probed: Probed,
        back_end: Callable[[KvStorage, Sequence[Span]], PagedBatch],
        own: str,
        max_context: int,
        device: torch.device,
    ) -> None:
        self._module = module
        self._back_end = back_end
        self._own = own
        self._device = device
        self._max_context = max_context
        long = long_prompt(module, probed, max_context, device)
        self._short = min(_SHORT, max_context, long)
        self._ids = random_ids(module, long + self._short, torch.Generator().manual_seed(1)).numpy()
        self._long = long
        blocks = blocks_for(long) + 3 * (blocks_for(self._short) + 1)
        self._storage = KvStorage(probed.shape, blocks, 0, device)
        # Slots of the pool are handed out in reverse, and start with garbage: nothing may be read that was not written.
        self._storage.gpu.fill_(_garbage(probed.shape))
        self._slots = list(reversed(range(blocks)))

    def run(self) -> str:
        """What differs; empty if nothing does."""
        long, short = self._ids[: self._long], self._ids[self._long : self._long + self._short]
        rows = _rows(len(long))
        with self._own_attention(self._own):
            expected_long = self._expected(long, rows)
            expected_short = self._expected(short, range(len(short)))
            noise = max(self._noise(short, expected_short), self._beginning_noise(long, rows, expected_long))
            cached = self._with_own_cache(long)
        if not bool(torch.isfinite(expected_long).all() and torch.isfinite(expected_short).all()):
            return "its own attention gives logits that are not finite"
        low, high = _ALLOWED.get(self._storage.shape.dtype, _ALLOWED[torch.float32])
        allowed = min(low + _NOISE * noise, high)
        if cached is not None and not _difference(cached, expected_long[-1:]) <= allowed:
            return "in the self-test, its own attention gives other logits with a cache than without one"
        for name, got, expected in self._cases(long, short, rows, expected_long, expected_short):
            differs = _difference(got, expected)
            if not differs <= allowed:
                return (
                    f"in the self-test, the engine's logits of {name} differ from those of the model's own attention "
                    f"({self._own}) by {differs:.2g} of their spread, {allowed:.2g} is allowed"
                )
        return ""

    def _cases(
        self,
        long: np.ndarray[Any, Any],
        short: np.ndarray[Any, Any],
        rows: Sequence[int],
        expected_long: torch.Tensor,
        expected_short: torch.Tensor,
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        n, m = len(long), len(short)
        table, other, third = self._table(n), self._table(m), self._table(m)
        yield f"a prompt of {m} tokens", self._run([(short, Span(0, m, other), 0)], range(m)), expected_short
        whole = self._run([(long, Span(0, n, table), 0)], rows)
        yield f"a prompt of {n} tokens", whole, expected_long
        # In chunks, over the same blocks, whose content is lost first; the last chunk is a decode.
        self._storage.gpu[table] = _garbage(self._storage.shape)
        cuts = sorted({0, min(n - 1, BLOCK_TOKENS + 3), n // 2, n - 1, n})
        parts = [
            self._run([(long[a:b], Span(a, b - a, table), 0)], [row - a for row in rows if a <= row < b] or [0])
            for a, b in pairwise(cuts)
        ]
        kept = [part for part, (a, b) in zip(parts, pairwise(cuts), strict=True) if any(a <= row < b for row in rows)]
        yield f"a prompt of {n} tokens in chunks", torch.cat(kept), expected_long
        # A chunk, a prompt and a decode in one batch.
        cut = n - min(n, m)
        batch = [
            (long[cut:], Span(cut, n - cut, table), 0),
            (short[-1:], Span(m - 1, 1, other), 0),
            (short, Span(0, m, third), 0),
        ]
        ends = [n - cut - 1, n - cut, n - cut + m]
        expected = torch.stack([expected_long[-1], expected_short[-1], expected_short[-1]])
        yield "prompts in one batch", self._run(batch, ends), expected
        if n > BLOCK_TOKENS:
            yield self._cached_prefix(long, short, table, third)
        yield from self._far(short, expected_short, other, third)

    def _cached_prefix(
        self, long: np.ndarray[Any, Any], short: np.ndarray[Any, Any], table: list[int], free: list[int]
    ) -> tuple[str, torch.Tensor, torch.Tensor]:
        """The short text after the long one's first block, whose KV is not computed again."""
        m = min(len(short), self._max_context - BLOCK_TOKENS)
        with self._own_attention(self._own):
            expected = self._expected(np.concatenate([long[:BLOCK_TOKENS], short[:m]]), range(BLOCK_TOKENS, BLOCK_TOKENS + m))
        span = Span(BLOCK_TOKENS, m, [table[0], *free])
        return "a prompt with a cached prefix", self._run([(short[:m], span, 0)], range(m)), expected

    def _far(
        self, short: np.ndarray[Any, Any], expected_short: torch.Tensor, table: list[int], other: list[int]
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """The short text at the last positions. It is alone in its sequence: nothing precedes it, here as there."""
        m, first = len(short), self._max_context - len(short)
        if first <= 0:
            return
        with self._own_attention(self._own):
            expected = self._expected(short, range(m), first)
        far, near = (short, Span(0, m, table), first), (short, Span(0, m, other), 0)
        yield f"a prompt at positions from {first}", self._run([far], range(m)), expected
        got = self._run([far, near], range(2 * m))
        yield f"prompts at positions 0 and {first} in one batch", got, torch.cat([expected, expected_short])

    def _run(self, parts: Sequence[tuple[np.ndarray[Any, Any], Span, int]], rows: Sequence[int]) -> torch.Tensor:
        """Logits of the engine. A part has ids, a span, and what is added to the positions that the model is told."""
        paged = self._back_end(self._storage, [span for _, span, _ in parts])
        ids = np.concatenate([ids for ids, _, _ in parts])
        positions = np.concatenate([np.arange(span.start, span.start + span.tokens) + shift for _, span, shift in parts])
        return forward(self._module, paged, ids, positions, rows, self._device)

    def _expected(self, ids: np.ndarray[Any, Any], rows: Sequence[int], first: int = 0) -> torch.Tensor:
        """Logits of the model's own attention, for one prompt."""
        output = self._module(
            input_ids=torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(self._device),
            position_ids=torch.arange(first, first + len(ids), device=self._device).unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.tensor(list(rows), device=self._device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits if len(logits) == len(rows) else logits[list(rows)]

    def _with_own_cache(self, ids: np.ndarray[Any, Any]) -> torch.Tensor | None:
        """Logits after the last token as `transformers` generates: two tokens over a cache; None if the model has no cache."""
        past, logits = None, None
        n = len(ids)
        for start, end in pairwise(sorted({0, max(0, n - 2), max(0, n - 1), n})):
            output = self._module(
                input_ids=torch.from_numpy(ids[start:end].astype(np.int64)).unsqueeze(0).to(self._device),
                position_ids=torch.arange(start, end, device=self._device).unsqueeze(0),
                use_cache=True,
                past_key_values=past,
                logits_to_keep=1,
            )
            past, logits = output.past_key_values, output.logits[0, -1:]
            if past is None:
                return None
        return logits

    @contextmanager
    def _own_attention(self, name: str) -> Iterator[None]:
        before = self._module.config.get_text_config(decoder=True)._attn_implementation
        self._module.set_attn_implementation(name)
        try:
            yield
        finally:
            self._module.set_attn_implementation(before)

    def _beginning_noise(self, ids: np.ndarray[Any, Any], rows: Sequence[int], logits: torch.Tensor) -> float:
        """What the length of a prompt changes in the logits of an earlier token."""
        row = rows[len(rows) // 2]
        return _difference(self._expected(ids[: row + 1], [row]), logits[[len(rows) // 2]])

    def _noise(self, ids: np.ndarray[Any, Any], logits: torch.Tensor) -> float:
        """What another implementation of the model's own attention changes."""
        with self._own_attention("eager"):
            eager = self._expected(ids, range(len(ids)))
        return _difference(eager, logits)

    def _table(self, tokens: int) -> list[int]:
        return [self._slots.pop() for _ in range(blocks_for(tokens))]


def long_prompt(module: Any, probed: Probed, max_context: int, device: torch.device) -> int:
    """Tokens of the long prompt: more than the longest window, within the bounds of time and memory."""
    config = module.config.get_text_config(decoder=True)
    parameters = max(1, sum(parameter.numel() for parameter in module.parameters()))
    width = max(4, probed.shape.dtype.itemsize)
    bound = min(
        max_context,
        _LONGEST,
        int(_FLOP.get(device.type, _FLOP_OTHER) / (2 * parameters * _PASSES)),
        _KV_BYTES * BLOCK_TOKENS // probed.shape.block_bytes,
        math.isqrt(_SCORE_BYTES // (width * config.num_attention_heads)),
    )
    bound = max(bound, min(max_context, 2 * BLOCK_TOKENS + 8))
    stated = getattr(config, "sliding_window", None)
    windows = {*probed.windows, *([stated] if isinstance(stated, int) else [])}
    wanted = max([_LONG, *(window + 2 * BLOCK_TOKENS for window in windows if window + BLOCK_TOKENS <= bound)])
    return min(wanted, bound)


def _rows(tokens: int) -> list[int]:
    """Tokens whose logits are compared: the first, the last, and some between."""
    return sorted({round(place) for place in np.linspace(0, tokens - 1, _ROWS)})


def _garbage(shape: KvShape) -> float:
    return min(1e4, torch.finfo(shape.dtype).max / 4)


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Greatest difference of a row, as a share of the standard deviation of what was expected; infinite if not finite."""
    got, expected = got.double(), expected.double()
    spread = expected.std(dim=1, correction=0).clamp_min(1e-6 * float(expected.abs().max()) + 1e-300)
    share = float(((got - expected).square().mean(dim=1).sqrt() / spread).max())
    return share if math.isfinite(share) else math.inf
