"""The contexts that are made of facts, and their places in a table.

A context names a few facts. The access model keeps one count for each combination of their values, so what matters together
has to stand together in one context. But for its last step, the hash that tells the place is a sum over the facts: what the
settled ones come to is worth keeping while what is expected next changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pbkv_cluster.reuse.model.features import FORETOLD, SETTLED, Fact, Ints

Sums = npt.NDArray[np.uint64]

F = Fact
CONTEXTS: tuple[tuple[Fact, ...], ...] = (
    # how it was used
    (F.USED_4, F.OUTPUT, F.SHARING),
    (F.USED_8, F.OUTPUT, F.BRANCHES),
    (F.USED_16, F.OUTPUT),
    (F.AGE, F.USES, F.OUTPUT, F.ENDS),
    # and by whom, and who runs
    (F.AGENT, F.LAST_AGENT, F.AGE, F.OUTPUT, F.ENDS),
    (F.AGENT, F.LAST_AGENT, F.USED_4, F.BRANCHES),
    (F.AGENT, F.AGENT_1, F.USED_4, F.OUTPUT),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.LAST_AGENT, F.AGE),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.SYMBOL, F.SYMBOL_1, F.USED_8, F.LAST_AGENT),
    (F.FIRST_AGENT, F.FIRST_STEP, F.AGENT, F.ENDS),
    # where the last prompts left the known
    (F.SYMBOL, F.SYMBOL_1, F.USED_4, F.OUTPUT, F.ENDS),
    (F.AGENT, F.SYMBOL, F.AGE, F.OUTPUT, F.BRANCHES),
    # what is expected next
    (F.NEXT, F.CONFIDENCE, F.IN_NEXT, F.USED_2, F.OUTPUT, F.ENDS),
    (F.NEXT, F.IN_NEXT, F.SECOND, F.IN_SECOND, F.CONFIDENCE),
    (F.NEXT, F.CONFIDENCE, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.USED_4, F.OUTPUT, F.AT_END),
    (F.NEXT_SYMBOL, F.CONFIDENCE, F.USED_4, F.OUTPUT, F.ENDS, F.BRANCHES),
    (F.NEXT, F.SECOND, F.CONFIDENCE, F.USED_4, F.SYMBOL),
    (F.IN_NEXT, F.AGE, F.CONFIDENCE, F.AT_END, F.OUTPUT),
    # which it is
    (F.KEY, F.NEXT, F.SHARING),
    (F.KEY, F.STEP),
    (F.SHARING, F.AGE, F.STEP, F.ON_TOP),
    # how far the workflow is
    (F.STEP, F.FIRST_STEP, F.OUTPUT, F.ENDS),
    (F.STEP, F.AGE, F.LAST_AGENT, F.AGENT),
    # lengths
    (F.AGENT, F.REPLY, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.REPLY, F.USED_4, F.OUTPUT),
    (F.REPLY, F.ADDED, F.OUTPUT, F.AT_END, F.AGENT),
    (F.START, F.BLOCKS, F.USED_4, F.AGENT),
)


def _multipliers(contexts: Sequence[Sequence[Fact]]) -> tuple[Sums, Sums]:
    draws = np.random.default_rng(20260522)  # part of the format of saved models
    odd = draws.integers(0, 2**63, size=(len(Fact), len(contexts)), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    used = np.zeros_like(odd)
    for number, context in enumerate(contexts):
        used[list(context), number] = 1
    return odd * used, draws.integers(0, 2**63, size=len(contexts), dtype=np.uint64)


_HALF, _MIX = np.uint64(32), np.uint64(0x9E3779B97F4A7C15)
_ODD, _SALT = _multipliers(CONTEXTS)

_OPEN = _ODD[FORETOLD].any(axis=0)
STEADY = np.flatnonzero(~_OPEN)  # contexts of settled facts alone
OPEN = np.flatnonzero(_OPEN)  # and those that change with what is expected next
_ODD_SETTLED, _ODD_FORETOLD = _ODD[SETTLED], _ODD[FORETOLD][:, OPEN]


def context_rows(rows: Ints, bits: int) -> Ints:
    """The place of every context of every row in a table of 2^bits: a multiply-add hash (Dietzfelbinger, STACS 1996).

    Shape (rows, facts) to (rows, contexts).
    """
    return _places((rows + 2).view(np.uint64) @ _ODD + _SALT, bits)


def settled_sums(settled: Ints) -> Sums:
    """What settled facts come to in every context. Shape (rows, settled facts) to (rows, contexts)."""
    found: Sums = (settled + 2).view(np.uint64) @ _ODD_SETTLED + _SALT
    return found


def steady_rows(sums: Sums, bits: int) -> Ints:
    """The columns `STEADY` of `context_rows`, given all of `settled_sums`."""
    return _places(sums.take(STEADY, axis=1), bits)


def open_rows(sums: Sums, foretold: Ints, bits: int) -> Ints:
    """The columns `OPEN` of `context_rows`, given the same columns of `settled_sums`, and the foretold facts."""
    return _places((foretold + 2).view(np.uint64) @ _ODD_FORETOLD + sums, bits)


def _places(hashed: Sums, bits: int) -> Ints:
    hashed ^= hashed >> _HALF
    hashed *= _MIX
    hashed >>= np.uint64(64 - bits)
    return hashed.view(np.int64)
