"""Runs prompts through the engine's path and through the model's own attention: both must give the same logits.

The probe sees what attention is called with; only this sees what comes out: with the loaded weights, on the device, through the
attention back end that will serve. Prompts are random and always the same:

- short, long, and long in chunks; the long one is longer than every sliding window, as far as the bounds below allow;
- several in one batch, with decodes; and one that goes on from blocks that another has computed;
- long over the model's own cache, whose windows come from the configuration and not from the mask;
- a short one at the end of the context, alone and beside one at its beginning: rotary factors may switch between the two. Where
  they are known to switch, also the longest that is still short, and the shortest that is long, in one batch.

What is allowed follows the dtype, and the noise of the model itself (see `logits`): how much its own attention differs between
two ways to compute the same (the whole prompt or its beginning, fused or eager kernels).

Time and memory are bounded by the size of the long prompt: see `long_prompt`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION, PagedBatch, Span
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.model.forward import forward
from pbkv_cluster.gpu_worker.model.probe import Probed, random_ids
from pbkv_cluster.gpu_worker.model.refusal import reason_of, refusal
from pbkv_cluster.gpu_worker.model.rotary import RotarySwitch
from pbkv_cluster.gpu_worker.model.trial.logits import allowed_difference, difference
from pbkv_cluster.gpu_worker.model.trial.long_prompt import long_prompt

log = logging.getLogger(__name__)

_SHORT = 12  # tokens
_ROWS = 6  # tokens of a prompt whose logits are compared


def self_test(
    module: Any,
    probed: Probed,
    rotary: RotarySwitch | None,
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
        rotary: of the model, if its rotary factors switch.
        back_end: attention of the engine.
        own: the model's own attention implementation.
        path: of the model, for errors.
        max_context: tokens.
        device: of the model.

    Raises:
        StartupError: they differ.
    """
    started = time.monotonic()
    test = _SelfTest(module, probed, rotary, back_end, own, max_context, device)
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


class _Part(NamedTuple):
    """A chunk of one sequence in a batch."""

    ids: np.ndarray[Any, Any]
    span: Span
    length: int  # tokens of the sequence
    shift: int = 0  # is added to the positions that the model is told

    @property
    def positions(self) -> np.ndarray[Any, Any]:
        return np.arange(self.span.start, self.span.start + self.span.tokens) + self.shift


class _SelfTest:
    """The prompts, their logits by the model's own attention, and the cases that are compared with these."""

    def __init__(
        self,
        module: Any,
        probed: Probed,
        rotary: RotarySwitch | None,
        back_end: Callable[[KvStorage, Sequence[Span]], PagedBatch],
        own: str,
        max_context: int,
        device: torch.device,
    ) -> None:
        self._module = module
        self._rotary = rotary
        self._back_end = back_end
        self._own = own
        self._device = device
        self._max_context = max_context
        switch = rotary.tokens if rotary else 0
        long = long_prompt(module, probed, switch, max_context, device)
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
        allowed = allowed_difference(self._storage.shape.dtype, noise)
        if cached is not None and not difference(cached, expected_long[-1:]) <= allowed:
            return "in the self-test, its own attention gives other logits with a cache than without one"
        for name, got, expected in self._cases(long, short, rows, expected_long, expected_short):
            differs = difference(got, expected)
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
        yield f"a prompt of {m} tokens", self._run([_Part(short, Span(0, m, other), m)], range(m)), expected_short
        whole = self._run([_Part(long, Span(0, n, table), n)], rows)
        yield f"a prompt of {n} tokens", whole, expected_long
        # In chunks, over the same blocks, whose content is lost first; the last chunk is a decode.
        self._storage.gpu[table] = _garbage(self._storage.shape)
        cuts = sorted({0, min(n - 1, BLOCK_TOKENS + 3), n // 2, n - 1, n})
        parts = [
            self._run([_Part(long[a:b], Span(a, b - a, table), n)], [row - a for row in rows if a <= row < b] or [0])
            for a, b in pairwise(cuts)
        ]
        kept = [part for part, (a, b) in zip(parts, pairwise(cuts), strict=True) if any(a <= row < b for row in rows)]
        yield f"a prompt of {n} tokens in chunks", torch.cat(kept), expected_long
        # A chunk, a prompt and a decode in one batch.
        cut = n - min(n, m)
        batch = [
            _Part(long[cut:], Span(cut, n - cut, table), n),
            _Part(short[-1:], Span(m - 1, 1, other), m),
            _Part(short, Span(0, m, third), m),
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
        """The short text after the long one's first block, which another sequence of its length has computed."""
        m = min(len(short), self._max_context - BLOCK_TOKENS)
        length = BLOCK_TOKENS + m
        self._run([_Part(long[:BLOCK_TOKENS], Span(0, BLOCK_TOKENS, [table[0]]), length)], [0])
        with self._own_attention(self._own):
            expected = self._expected(np.concatenate([long[:BLOCK_TOKENS], short[:m]]), range(BLOCK_TOKENS, length))
        span = Span(BLOCK_TOKENS, m, [table[0], *free])
        return "a prompt with a cached prefix", self._run([_Part(short[:m], span, length)], range(m)), expected

    def _far(
        self, short: np.ndarray[Any, Any], expected_short: torch.Tensor, table: list[int], other: list[int]
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """The short text at the last positions, and at those where the model's factors switch."""
        m, first = len(short), self._max_context - len(short)
        if first <= 0:
            return
        expected, far = self._at(short, first, table)
        near = _Part(short, Span(0, m, other), m)
        yield f"a prompt at positions from {first}", self._run([far], range(m)), expected
        got = self._run([far, near], range(2 * m))
        yield f"prompts at positions 0 and {first} in one batch", got, torch.cat([expected, expected_short])
        if self._rotary is None or (first := self._rotary.tokens - m) <= 0:
            return
        expected, last_short = self._at(short, first, table)
        beyond, first_long = self._at(short, first + 1, other)
        got = self._run([last_short, first_long], range(2 * m))
        yield f"prompts up to positions {first + m - 1} and {first + m} in one batch", got, torch.cat([expected, beyond])

    def _at(self, ids: np.ndarray[Any, Any], first: int, table: list[int]) -> tuple[torch.Tensor, _Part]:
        """A text at positions from `first`: alone in its sequence, so that nothing precedes it, here as there."""
        with self._own_attention(self._own):
            expected = self._expected(ids, range(len(ids)), first)
        return expected, _Part(ids, Span(0, len(ids), table), first + len(ids), first)

    def _run(self, parts: Sequence[_Part], rows: Sequence[int]) -> torch.Tensor:
        """Logits of the engine."""
        paged = self._back_end(self._storage, [part.span for part in parts])
        ids = np.concatenate([part.ids for part in parts])
        positions = np.concatenate([part.positions for part in parts])
        lengths = np.repeat([part.length for part in parts], [len(part.ids) for part in parts])
        return forward(self._module, paged, ids, positions, lengths, rows, self._device, self._rotary)

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
        """What the length of a prompt changes in the logits of an earlier token, where its rotary factors stay the same."""
        switch = self._rotary.tokens if self._rotary and self._rotary.tokens < len(ids) else 0
        middle = next(place for place in range(len(rows) // 2, len(rows)) if rows[place] >= switch)
        row = rows[middle]
        return difference(self._expected(ids[: row + 1], [row]), logits[[middle]])

    def _noise(self, ids: np.ndarray[Any, Any], logits: torch.Tensor) -> float:
        """What another implementation of the model's own attention changes."""
        with self._own_attention("eager"):
            eager = self._expected(ids, range(len(ids)))
        return difference(eager, logits)

    def _table(self, tokens: int) -> list[int]:
        return [self._slots.pop() for _ in range(blocks_for(tokens))]


def _rows(tokens: int) -> list[int]:
    """Tokens whose logits are compared: the first, the last, and some between."""
    return sorted({round(place) for place in np.linspace(0, tokens - 1, _ROWS)})


def _garbage(shape: KvShape) -> float:
    return min(1e4, torch.finfo(shape.dtype).max / 4)
