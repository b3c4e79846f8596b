"""prototype"""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np

from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.store.access.examples import examples
from pbkv_cluster.store.access.hazard import HazardModel, chances, segment_rows
from pbkv_cluster.store.access.next_event import NextEventModel
from pbkv_cluster.store.policies.base import POLICIES, ReusePolicy

GRID = np.array([0.5, 1, 2, 4, 8, 15, 25, 40, 60, 90, 140, 220, 360, 600.0])
STEP = np.diff(np.concatenate(([0.0], GRID)))
EDGES = np.array([0, 1, 2, 3, 4, 6, 10, 20, 23])
DIST = np.array([1, 2, 3, 4, 5.5, 8.5, 15, 30])


class Pool:
    def __init__(self, size=200):
        self.q = deque()
        self.s = []
        self.size = size
        self.sum = 0.0

    def add(self, v):
        self.q.append(v)
        bisect.insort(self.s, v)
        self.sum += v
        if len(self.q) > self.size:
            o = self.q.popleft()
            self.sum -= o
            del self.s[bisect.bisect_left(self.s, o)]
        self.arr = np.array(self.s)

    @property
    def mean(self):
        return self.sum / len(self.q)

    def cdf(self, h, e):
        """P(v <= e+h | v > e)"""
        a = self.arr
        gone = np.searchsorted(a, e, side="right")
        left = len(a) - gone
        # pseudo: 2 observations of an exponential residual with mean max(e, mean)
        base = 1 - np.exp(-np.maximum(h, 0) / max(e, self.mean, 0.1))
        return (np.searchsorted(a, e + h, side="right") - gone + 2 * base) / (left + 2) * (h > 0)


class Timing:
    def __init__(self):
        self.gaps = {}
        self.durs = {}
        self.gap = Pool()
        self.dur = Pool()
        self.gap.add(10.0)
        self.dur.add(5.0)

    def _get(self, d, agent, glob):
        p = d.get(agent)
        return p if p is not None and len(p.q) >= 8 else glob

    def add_gap(self, agent, v):
        self.gaps.setdefault(agent, Pool()).add(v)
        self.gap.add(v)

    def add_dur(self, agent, v):
        self.durs.setdefault(agent, Pool()).add(v)
        self.dur.add(v)

    @property
    def cycle(self):
        return self.gap.mean + self.dur.mean

    def matrix(self, agent, running, elapsed):
        g = self._get(self.gaps, agent, self.gap)
        d = self._get(self.durs, agent, self.dur)
        cycle = self.gap.mean + self.dur.mean
        if running:
            rem = max(d.mean - elapsed, 0.2 * d.mean)
            shift, e = rem, 0.0
        else:
            shift, e = 0.0, elapsed
        h = GRID[None, :] - shift - 0.8 * cycle * (DIST[:, None] - 1)
        return g.cdf(h, e)


class Live:
    __slots__ = ("G", "agent", "at", "dirty", "p", "running", "since")


class Model:
    def __init__(self, **kw):
        self.next = NextEventModel()
        self.hazard = HazardModel(**kw)
        self.loss = 0.0
        self.seen = 0

    def learn(self, history):
        steps = history.steps
        x, when, dist, blocks = examples(steps, self.next)
        self.loss += self.hazard.learn(x, when, dist, blocks)
        self.seen += float(blocks.sum())
        self.next.learn(steps)


@POLICIES.register("pbkv")
class Pbkv(ReusePolicy):
    drifts = True
    model: Model = None
    online = True
    arr_a, arr_b = 0.02, 1.0
    arrivals_on = True
    eps = 0.3

    def __init__(self, config: CacheConfig):
        self.model = self.model or Model()
        self.time = Timing()
        self.live = {}
        self.starts = deque(maxlen=60)
        self.arrivals = 0
        self.evals = 0

    def rate(self, now):
        if len(self.starts) < 2:
            return 0.05
        return len(self.starts) / max(now - self.starts[0], 1.0)

    def step_began(self, owner, step, agent, now):
        l = self.live.get(owner)
        if l is None:
            l = self.live[owner] = Live()
            self.starts.append(now)
            self.arrivals += 1
            l.running = True
        elif not l.running:
            self.time.add_gap(l.agent, now - l.since)
        l.running, l.since, l.agent, l.dirty, l.at = True, now, agent, True, -1e9

    def step_ended(self, owner, now):
        l = self.live[owner]
        self.time.add_dur(l.agent, now - l.since)
        l.running, l.since, l.dirty, l.at = False, now, True, -1e9

    def workflow_ended(self, owner, now):
        self.live.pop(owner, None)
        if self.online:
            self.model.learn(owner.history)

    def stale(self, now):
        return [o for o, l in self.live.items() if now - l.at > 1 + 0.3 * (now - l.since) and l.at > 0]

    def _live(self, owner, now):
        l = self.live[owner]
        if l.dirty:
            h = owner.history
            x = segment_rows(h, self.model.next.distribution(h.steps))
            p = chances(self.model.hazard.hazards(x))
            l.p = dict(zip(h.segments, p))
            l.dirty = False
        if now - l.at > 0.5 + 0.15 * (now - l.since):
            l.G = self.time.matrix(l.agent, l.running, now - l.since)
            l.at = now
        return l

    strangers_on = True

    def value(self, node, now):
        self.evals += 1
        S = np.ones(len(GRID))
        for owner, seg in node.owners.items():
            l = self._live(owner, now)
            p = l.p.get(seg)
            if p is not None:
                S *= 1 - p @ l.G
        e = node.entry
        if e is not None and self.arrivals_on:
            arr = self.cache.catalog.arrivals
            r = (self.arr_a + e.workflows - 1) / (self.arr_b + arr - e.arrival)
            delay = e.step_sum / max(e.workflows, 1) * self.time.cycle
            S *= np.exp(-self.rate(now) * r * np.maximum(GRID - delay, 0))
            if e.workflows > 1 and self.strangers_on:
                exposed = e.exposed(arr)
                cum = np.cumsum(e.first)
                parent = node.parent
                for owner in self.live if parent.is_root else parent.owners:
                    if owner in node.owners:
                        continue
                    l = self.live.get(owner)
                    if l is None:
                        continue
                    t = len(owner.history.steps) - 1
                    q0 = t - (0 if parent.is_root else parent.owners[owner].touched[0])
                    if q0 >= 23:
                        continue
                    gone = cum[q0]
                    left = cum[-1] - gone
                    if left <= 0:
                        continue
                    # a workflow that has ended without touching it is exposed too; the active ones are not yet known
                    pj = np.diff(cum[np.minimum(q0 + EDGES, 23)]) / (exposed - gone + 1)
                    l = self._live(owner, now)
                    S *= 1 - pj @ l.G
        prev = np.concatenate(([1.0], S[:-1]))
        area = np.cumsum((S + prev) / 2 * STEP)
        return float(((1 - S) / (area + self.eps)).max())
