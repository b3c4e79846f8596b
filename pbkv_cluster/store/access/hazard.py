"""The access model: the hazard that a workflow uses a segment again 1, 2, 3 ... steps from now, by context mixing."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.store.access.history import History, Segment
from pbkv_cluster.store.access.next_event import Event

BIN_STARTS = np.array([1, 2, 3, 4, 5, 7, 11, 21])
BINS = len(BIN_STARTS)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# columns
(
    M2,
    M4,
    M8,
    M16,
    IO,
    SH,
    KEY,
    AGE,
    LA,
    FA,
    FS,
    NT,
    BR,
    EK,
    REL1,
    REL2,
    T,
    A0,
    A1,
    A2,
    S0,
    S1,
    S2,
    E1,
    EA,
    ES,
    Q,
    E2,
    TAIL,
    DEPTH,
) = range(30)
FEATURES = 30

CONTEXTS: list[tuple[int, ...]] = [
    (M4, IO, SH),
    (M8, IO, BR),
    (M16, IO),
    (AGE, NT, IO, EK),
    (A0, LA, AGE, IO, EK),
    (A0, LA, M4, BR),
    (A0, A1, M4, IO),
    (A0, A1, A2, LA, AGE),
    (S0, S1, M4, IO, EK),
    (A0, S0, AGE, IO, BR),
    (E1, Q, REL1, M2, IO, EK),
    (E1, REL1, E2, REL2, Q),
    (E1, Q, LA, AGE, EK),
    (E1, M4, IO, TAIL),
    (ES, Q, M4, IO, EK, BR),
    (KEY, E1, SH),
    (KEY, T),
    (T, FS, IO, EK),
    (T, AGE, LA, A0),
    (FA, FS, A0, EK),
    (REL1, AGE, Q, TAIL, IO),
    (E1, E2, Q, M4, S0),
    (SH, AGE, T, DEPTH),
    (A0, A1, A2, S0, S1, M8, LA),
]
N = len(CONTEXTS)


def segment_rows(history: History, expected: dict[Event, float], segments: Sequence[Segment] | None = None) -> Ints:
    steps = history.steps
    t = len(steps) - 1
    ranked = sorted(expected.items(), key=lambda item: -item[1])[:2]
    e1, p1 = ranked[0] if ranked else (("?", 0), 0.0)
    e2 = ranked[1][0] if len(ranked) > 1 else ("?", 0)
    q = 0 if p1 < 0.4 else 1 if p1 < 0.7 else 2 if p1 < 0.9 else 3
    a1, a2 = e1[0], e2[0]
    l1, l2 = history.last_step.get(a1), history.last_step.get(a2)

    def agent(back: int) -> int:
        return crc32(steps[t - back].agent.encode()) if back <= t else 1

    def symbol(back: int) -> int:
        return steps[t - back].symbol if back <= t else -1

    state = (
        min(t, 40),
        agent(0),
        agent(1),
        agent(2),
        symbol(0),
        symbol(1),
        symbol(2),
        crc32(b"%s/%d" % (a1.encode(), e1[1])),
        crc32(a1.encode()),
        e1[1],
        q,
        crc32(b"%s/%d" % (a2.encode(), e2[1])),
    )
    rows = []
    end = history.ends[t]
    for s in history.segments if segments is None else segments:
        last = s.touched[-1]
        age = t - last
        mask = s.mask << age if age < 16 else 0
        r1 = 0 if l1 is None else 3 if (at := s.agents.get(a1)) is None else 1 if at == l1 else 2
        r2 = 0 if l2 is None else 3 if (at := s.agents.get(a2)) is None else 1 if at == l2 else 2
        rows.append(
            (
                mask & 3,
                mask & 15,
                mask & 255,
                mask & 0xFFFF,
                s.output,
                s.sharing,
                s.key,
                age if age < 16 else 16 + min(age // 8, 8),
                crc32(s.last_agent.encode()),
                crc32(s.first_agent.encode()),
                min(s.touched[0], 20),
                min(len(s.touched), 6),
                min(s.branches, 3),
                s.ends,
                r1,
                r2,
                *state,
                s is end,
                s.parent is None,
            )
        )
    return np.array(rows, dtype=np.int64).reshape(-1, FEATURES)


_rng = np.random.default_rng(7)
_MULT = _rng.integers(1, 2**63 - 1, size=(FEATURES, N), dtype=np.int64) | 1
_USED = np.zeros((FEATURES, N), dtype=np.int64)
for _i, _c in enumerate(CONTEXTS):
    _USED[list(_c), _i] = 1
_MULT = (_MULT * _USED).astype(np.uint64)
_SALT = _rng.integers(0, 2**63 - 1, size=N, dtype=np.int64).astype(np.uint64)


def context_rows(x: Ints, bits: int) -> Ints:
    h = (x.astype(np.uint64) + np.uint64(1)) @ _MULT + _SALT
    h ^= h >> np.uint64(32)
    h *= np.uint64(0x9E3779B97F4A7C15)
    return (h >> np.uint64(64 - bits)).astype(np.int64)


class HazardModel:
    def __init__(self, bits: int = 18, lr: float = 0.003, init: float = 0.12) -> None:
        self.bits = bits
        self.n = np.zeros((1 << bits, BINS), dtype=np.float32)
        self.hits = np.zeros((1 << bits, BINS), dtype=np.float32)
        self.w = np.full((N, BINS, 8), init, dtype=np.float64)
        self.w[:, :, 0] = 0
        self.lr = lr

    def inputs(self, rows: Ints) -> tuple[Floats, Ints]:
        n = self.n[rows]
        st = np.log((self.hits[rows] + 0.3) / (n - self.hits[rows] + 0.3))
        q = np.minimum(np.frexp(n + 1)[1] - 1, 7)
        return st, q

    def mix(self, st: Floats, q: Ints) -> Floats:
        """(segments, contexts, bins) to hazards (segments, bins)."""
        w = self.w[np.arange(N)[:, None], np.arange(BINS), q]
        return 1.0 / (1.0 + np.exp(-np.clip((w * st).sum(axis=1), -12, 12)))

    def hazards(self, x: Ints) -> Floats:
        if not len(x):
            return np.zeros((0, BINS))
        return self.mix(*self.inputs(context_rows(x, self.bits)))

    def learn(self, x: Ints, when: Ints, distance: Ints, blocks: Ints) -> float:
        """Examples grouped by `when`. distance 0: never. Returns the sum of log losses, weighted."""
        rows = context_rows(x, self.bits)
        st, q = self.inputs(rows)
        outcome = np.where(distance > 0, np.searchsorted(BIN_STARTS, distance, side="right") - 1, BINS)
        bins = np.arange(BINS)
        risk = bins <= outcome[:, None]
        y = bins == outcome[:, None]
        weight = np.minimum(2.0, 0.25 + blocks / 8)
        loss = 0.0
        for t in np.unique(when):
            pick = np.flatnonzero(when == t)
            s, qq = st[pick], q[pick]
            h = self.mix(s, qq)
            err = (y[pick] - h) * risk[pick] * weight[pick, None]
            loss -= float((np.log(np.where(y[pick], h, 1 - h)) * risk[pick] * weight[pick, None]).sum())
            g = err[:, None, :] * s
            flat = (np.arange(N)[:, None] * BINS + np.arange(BINS)) * 8 + qq
            self.w += self.lr * np.bincount(flat.ravel(), weights=g.ravel(), minlength=N * BINS * 8).reshape(N, BINS, 8)
        r = rows.ravel()
        cw = np.minimum(1.0, 0.25 + blocks / 8)[:, None, None]
        np.add.at(self.n, r, np.broadcast_to(risk[:, None] * cw, st.shape).reshape(-1, BINS).astype(np.float32))
        np.add.at(self.hits, r, np.broadcast_to((y & risk)[:, None] * cw, st.shape).reshape(-1, BINS).astype(np.float32))
        return loss


def chances(hazards: Floats) -> Floats:
    """Probability of the first reuse in each bin."""
    left = np.cumprod(1 - hazards, axis=1)
    out = hazards.copy()
    out[:, 1:] *= left[:, :-1]
    return out
