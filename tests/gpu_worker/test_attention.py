"""Attention back ends against a reference that computes token by token, in float64."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.attention import PagedBatch, Span, choose
from pbkv_cluster.gpu_worker.attention.sdpa import SdpaBatch
from pbkv_cluster.gpu_worker.attention.varlen import VarlenBatch
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage

LAYERS = 2
BLOCKS = 40
CPU = torch.device("cpu")


def flash_twin(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes; queries are aligned with the last keys of their sequence."""
    assert all(part.is_contiguous() for part in (query, key, value))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    out = torch.empty_like(query)
    for n in range(len(cu_seq_q) - 1):
        rows = slice(int(cu_seq_q[n]), int(cu_seq_q[n + 1]))
        keys = slice(int(cu_seq_k[n]), int(cu_seq_k[n + 1]))
        counts = rows.stop - rows.start, keys.stop - keys.start
        at = torch.arange(counts[0]).unsqueeze(1) + counts[1] - counts[0]
        distance = at - torch.arange(counts[1])
        left, right = window_size
        seen = (distance >= -right if right >= 0 else torch.ones_like(distance, dtype=torch.bool)) & (
            distance <= left if left >= 0 else torch.ones_like(distance, dtype=torch.bool)
        )
        scores = torch.einsum("qhd,khd->hqk", query[rows], key[keys]) * (scale or 1 / math.sqrt(query.shape[2]))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, value[keys])
    return out


BackEnd = Callable[[KvStorage, list[Span]], PagedBatch]
BACK_ENDS: dict[str, BackEnd] = {"sdpa": SdpaBatch, "varlen": partial(VarlenBatch, kernel=flash_twin)}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """More threads than free cores make small tensors slow."""
    torch.set_num_threads(1)


@dataclass
class Case:
    """Sequences with some tokens in the pool already, and the others in the batch."""

    heads: int
    kv_heads: int
    dim: int
    scale: float | None
    window: int | None
    spans: list[Span]
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), min_size=1, max_size=5))
    lengths = [(start, draw(st.sampled_from([1, tokens]))) for start, tokens in lengths]
    slots = iter(draw(st.permutations(range(BLOCKS))))
    spans = [Span(start, n, [next(slots) for _ in range(blocks_for(start + n))]) for start, n in lengths]
    return Case(
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from([4, 8])),
        scale=draw(st.sampled_from([None, 0.25])),
        window=draw(st.none() | st.integers(1, 60)),
        spans=spans,
        seed=draw(st.integers(0, 1000)),
    )


def reference(case: Case, first: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of one sequence's tokens from `first` on, token by token."""
    group = case.heads // case.kv_heads
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    out = []
    for at in range(first, len(query)):
        seen = slice(0 if case.window is None else max(0, at + 1 - case.window), at + 1)
        scores = (key[seen] * query[at]).sum(-1) * (case.scale or 1 / math.sqrt(case.dim))
        out.append((scores.softmax(0).unsqueeze(-1) * value[seen]).sum(0))
    return torch.stack(out)


@pytest.mark.parametrize("name", BACK_ENDS)
@settings(deadline=None, max_examples=30)
@given(case=cases())
def test_a_batch_attends_as_each_of_its_sequences_alone(name: str, case: Case) -> None:
    noise = torch.Generator().manual_seed(case.seed)
    storage = KvStorage(KvShape(LAYERS, case.kv_heads, case.dim, torch.float64), BLOCKS, 0, CPU)
    storage.gpu.fill_(math.nan)  # what earlier sequences have left must have no effect, whatever it is
    lengths = [span.start + span.tokens for span in case.spans]
    query, key, value = (
        [
            [torch.randn(length, heads, case.dim, dtype=torch.float64, generator=noise) for length in lengths]
            for _ in range(LAYERS)
        ]
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    past = [Span(0, span.start, span.table) for span in case.spans if span.start]

    def attend(batch: PagedBatch, layer: int, parts: list[tuple[int, slice]]) -> torch.Tensor:
        q, k, v = (torch.cat([of[layer][n][rows] for n, rows in parts]) for of in (query, key, value))
        return batch.attend(layer, q, k, v, case.scale, case.window)

    if past:
        batch = BACK_ENDS[name](storage, past)
        rows = [(n, slice(0, span.start)) for n, span in enumerate(case.spans) if span.start]
        for layer in range(LAYERS):
            attend(batch, layer, rows)
    batch = BACK_ENDS[name](storage, case.spans)
    rows = [(n, slice(span.start, None)) for n, span in enumerate(case.spans)]
    for layer in range(LAYERS):
        got = attend(batch, layer, rows)
        alone = [reference(case, part.start, query[layer][n], key[layer][n], value[layer][n]) for n, part in rows]
        torch.testing.assert_close(got, torch.cat(alone), rtol=1e-9, atol=1e-11)


def test_the_installed_torch_has_the_kernel_with_the_expected_signature() -> None:
    from torch.nn.attention.varlen import varlen_attn

    calls = 0

    @wraps(varlen_attn)
    def checked(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        inspect.signature(varlen_attn).bind(*args, **kwargs)
        return flash_twin(*args, **kwargs)

    storage = KvStorage(KvShape(1, 1, 4, torch.float32), 4, 0, CPU)
    batch = VarlenBatch(storage, [Span(0, BLOCK_TOKENS + 1, [2, 1]), Span(0, 1, [3])], kernel=checked)
    query, key = torch.ones(BLOCK_TOKENS + 2, 2, 4), torch.ones(BLOCK_TOKENS + 2, 1, 4)
    batch.attend(0, query, key, key, None, None)
    batch.attend(0, query, key, key, 0.5, 8)
    assert calls == 2


def test_the_fastest_back_end_of_the_device_is_chosen() -> None:
    cuda = torch.device("cuda")
    assert choose("auto", CPU, torch.float32) is SdpaBatch
    assert choose("auto", CPU, torch.bfloat16) is SdpaBatch
    assert choose("auto", cuda, torch.float32) is SdpaBatch
    assert choose("auto", cuda, torch.bfloat16) is VarlenBatch
    assert choose("auto", cuda, torch.float16) is VarlenBatch
    assert choose("sdpa", cuda, torch.bfloat16) is SdpaBatch


def test_an_unknown_back_end_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="'flashier' is unknown; choose one of sdpa, varlen") as error:
        choose("flashier", CPU, torch.float32)
    assert error.value.field == "engine.attention"
