"""Loads beside computing: how much of a load a step hides, what prefetches cost decodes, and a host hit beside its prefill."""

from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.gpu.device import Device, Sizes
from benchmarks.gpu.loads import load
from benchmarks.gpu.pools import Pools
from benchmarks.gpu.stack import Stack
from benchmarks.report import Figure
from benchmarks.timing import Samples, in_turn, ratio
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.attention import Span
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine

_HIT_TOKENS = 16  # of a prompt whose other tokens are in host memory
_CHUNK = 2048  # tokens of a prefill that go through the layers together
_DECODES = 20  # steps in a measurement
_PREFETCHED = 64  # blocks in a prefetch
_AHEAD = 16  # prefetches that are under way or wait: more than the bus carries during a step, so that it is never idle
_LANE = (Tier.HOST, Tier.GPU)


class Overlap:
    """One stack of layers, with a step that loads, and sequences that decode."""

    def __init__(self, device: Device, sizes: Sizes, pools: Pools) -> None:
        self._device = device
        self._sizes = sizes
        self._pools = pools
        self.stack = Stack(device, sizes, pools.storage)
        self._loaded = pools.gpu_slots[: len(pools.host_slots)]
        own = pools.gpu_slots[len(self._loaded) :]
        step = blocks_for(sizes.new_tokens)
        self._table = self._loaded + own[:step]
        each = blocks_for(sizes.context + 1)
        tables = [own[step + n * each : step + (n + 1) * each] for n in range(sizes.sequences)]
        assert len(tables[-1]) == each, "the pool is too small"
        self._decodes = [Span(sizes.context, 1, table) for table in tables]

    def hidden(self, method: str) -> list[Figure]:
        """The share of a load's time by which a step that begins with it is not longer than the step alone."""
        result: list[Figure] = []
        for verify_share, words, goal in ((0.0, "", 0.95), (1.0, ", all checksums compared", None)):
            engine = self._pools.engine(self._copies(method), verify_share)
            found = self._in_turn(
                alone=partial(self._step, self._sizes.new_tokens),
                load=partial(load, self._pools, engine),
                both=partial(self._step_with_load, engine, self._sizes.new_tokens),
            )
            engine.close()
            shares = [
                1 - (both - alone) / loaded
                for both, alone, loaded in zip(found["both"], found["alone"], found["load"], strict=True)
            ]
            if not result:
                result.append(Figure(f"step of {self._sizes.new_tokens:,} tokens", median(found["alone"]) * 1e3, "ms"))
            name = f"load of {self._sizes.tokens:,} tokens{words}"
            result.append(Figure(name, median(found["load"]) * 1e3, "ms"))
            result.append(Figure(f"{name}, share that the step hides", median(shares), "", at_least=goal))
        return result

    def prefetch(self, method: str) -> list[Figure]:
        """Decode steps beside prefetches without a pause, which have the bus to themselves."""
        result: list[Figure] = []
        for verify_share, words, goal, bus in ((0.0, "", 1.01, 0.9), (1.0, ", all checksums compared", None, None)):
            engine = self._pools.engine(self._copies(method), verify_share)
            found, speeds = self._beside_prefetches(engine)
            engine.close()
            if not result:
                result.append(Figure(f"decodes of {self._sizes.sequences} sequences alone", median(found["alone"]) * 1e3, "ms"))
            result += [
                Figure(f"prefetched beside them{words}", median(speeds["beside"]) / 1e9, "GB/s"),
                Figure(f"the same over prefetches alone{words}", ratio(speeds, "beside", "alone"), "x", at_least=bus),
                Figure(f"decodes beside prefetches over alone{words}", ratio(found, "beside", "alone"), "x", at_most=goal),
            ]
        return result

    def _beside_prefetches(self, engine: ThreadedTransferEngine) -> tuple[Samples, Samples]:
        """Seconds of the decodes alone and beside prefetches; bytes a second of prefetches alone and beside decodes."""
        open_ = set[Transfer]()

        def pump() -> None:
            open_.difference_update(engine.completed())
            while len(open_) < _AHEAD:
                transfer = self._pools.load(self._loaded[:_PREFETCHED], urgent=False)
                engine.submit(transfer)
                open_.add(transfer)

        def drain() -> None:
            engine.wait(tuple(open_))
            open_.difference_update(engine.completed())

        def timed(run: Callable[[], None]) -> tuple[float, float]:
            before = engine.meter.blocks[_LANE]
            seconds = self._device.seconds(run)
            return seconds, (engine.meter.blocks[_LANE] - before) * self._block_bytes / seconds

        def prefetch_alone() -> None:
            pump()
            drain()

        seconds: dict[str, list[float]] = {"alone": [], "beside": []}
        speeds: dict[str, list[float]] = {"alone": [], "beside": []}
        for number in range(self._sizes.rounds + 1):
            runs = timed(lambda: self._decode(lambda: None)), timed(prefetch_alone), timed(lambda: self._decode(pump))
            drain()  # so that they delay nothing of the next round
            if number:  # the first one warms up
                seconds["alone"].append(runs[0][0])
                speeds["alone"].append(runs[1][1])
                seconds["beside"].append(runs[2][0])
                speeds["beside"].append(runs[2][1])
        return seconds, speeds

    def hit(self, method: str) -> list[Figure]:
        """A prompt whose blocks are in host memory, and the prefill of all of it."""
        engine = self._pools.engine(self._copies(method), 1.0)
        found = self._in_turn(hit=lambda: self._step_with_load(engine, _HIT_TOKENS), prefill=self._prefill)
        engine.close()
        what = f"{self._sizes.tokens:,} tokens from host memory, all checksums compared, and {_HIT_TOKENS} new"
        return [
            Figure(what, median(found["hit"]) * 1e3, "ms"),
            Figure(f"prefill of {self._sizes.tokens:,} tokens", median(found["prefill"]) * 1e3, "ms"),
            Figure("prefill over host hit", ratio(found, "prefill", "hit"), "x"),
        ]

    @property
    def _block_bytes(self) -> int:
        return self._pools.storage.shape.block_bytes

    def _copies(self, method: str) -> BlockCopies:
        return self._device.copies(self._pools.storage, method)

    def _in_turn(self, **runs: Callable[[], object]) -> Samples:
        timed = {name: partial(self._device.seconds, run) for name, run in runs.items()}
        in_turn(1, **timed)
        return in_turn(self._sizes.rounds, **timed)

    def _step(self, tokens: int) -> None:
        self.stack.run([Span(self._sizes.tokens, tokens, self._table)])

    def _step_with_load(self, engine: ThreadedTransferEngine, tokens: int) -> None:
        transfer = self._pools.load(self._loaded)
        engine.submit(transfer)
        assert transfer.layers is not None
        self.stack.run([Span(self._sizes.tokens, tokens, self._table)], [transfer.layers])
        self._device.synchronize()  # as the engine does when it takes the next tokens
        engine.wait((transfer,))
        engine.completed()
        assert not transfer.failed

    def _prefill(self) -> None:
        tokens = self._sizes.tokens
        for start in range(0, tokens, _CHUNK):
            self.stack.run([Span(start, min(_CHUNK, tokens - start), self._table[: blocks_for(tokens)])])

    def _decode(self, between: Callable[[], None]) -> None:
        for _ in range(_DECODES):
            between()
            self.stack.run(self._decodes)
            self._device.synchronize()


assert _HIT_TOKENS % BLOCK_TOKENS == 0
