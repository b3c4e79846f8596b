"""The block index on a real Redis, compared with a dictionary."""

import random
from collections.abc import Mapping, Sequence, Set

import pytest
from redis.asyncio import Redis

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import BlockIndex, Match, RedisServer, connect
from tests.polling import eventually
from tests.store.cluster_index.helpers import NAMESPACE, kept, packed, port_of, stored_blocks

GPU, HOST, BOTH, GONE = frozenset({Tier.GPU}), frozenset({Tier.HOST}), frozenset({Tier.GPU, Tier.HOST}), frozenset[Tier]()
W0, W1 = ("worker-0", "one"), ("worker-1", "one")


def sequence(seed: int, blocks: int) -> list[bytes]:
    return block_keys(NAMESPACE, random.Random(seed).randbytes(blocks * BLOCK_BYTES))


@pytest.fixture
def index(redis: Redis) -> BlockIndex:
    return BlockIndex(redis, "test", ttl_s=60.0)


async def publish(index: BlockIndex, worker: tuple[str, str], blocks: Mapping[bytes, Set[Tier]]) -> None:
    """Enters blocks of a worker that has announced itself, or does so now."""
    if await index.number(worker) is None:
        await index.announce(*worker, {})
    assert await index.publish(*worker, packed(blocks))


class Worker:
    """A worker's blocks in a dictionary, changed at random as a cache changes them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._children: dict[bytes, int] = {}
        self._parent: dict[bytes, bytes | None] = {}
        self.blocks: dict[bytes, frozenset[Tier]] = {}

    def change(self, sequences: list[list[bytes]]) -> dict[bytes, frozenset[Tier]]:
        before = dict(self.blocks)
        for _ in range(self._rng.randrange(1, 12)):
            keys = self._rng.choice(sequences)
            if self._rng.random() < 0.5:
                self._insert(keys[: self._rng.randrange(len(keys) + 1)])
            else:
                self._evict(keys)
        touched = [key for key in {**before, **self.blocks} if before.get(key) != self.blocks.get(key)]
        self._rng.shuffle(touched)
        return {key: self.blocks.get(key, GONE) for key in touched}

    def match(self, keys: Sequence[bytes]) -> Match:
        gpu = next((i for i, key in enumerate(keys) if Tier.GPU not in self.blocks.get(key, GONE)), len(keys))
        blocks = next((i for i, key in enumerate(keys) if key not in self.blocks), len(keys))
        return Match(gpu, blocks)

    def _insert(self, keys: list[bytes]) -> None:
        parent = None
        for key in keys:
            if key not in self._parent:
                self._parent[key] = parent
                if parent is not None:
                    self._children[parent] = self._children.get(parent, 0) + 1
            self.blocks[key] = self.blocks.get(key, GONE) | GPU
            parent = key

    def _evict(self, keys: list[bytes]) -> None:
        """Moves the tail of a sequence down a tier or out, up to a block that other blocks depend on."""
        for key in reversed(keys[self._rng.randrange(len(keys)) :]):
            tiers = self.blocks.get(key)
            if tiers is None:
                continue
            if Tier.GPU in tiers:
                if any(parent == key and Tier.GPU in self.blocks[child] for child, parent in self._parent.items()):
                    return
                self.blocks[key] = HOST
            elif self._children.get(key):
                return
            else:
                parent = self._parent.pop(key)
                if parent is not None:
                    self._children[parent] -= 1
                del self.blocks[key]


@pytest.mark.parametrize("seed", range(8))
async def test_matches_agree_with_a_dictionary(redis: Redis, index: BlockIndex, seed: int) -> None:
    rng = random.Random(seed)
    trunk = rng.randbytes(40 * BLOCK_BYTES)
    sequences = [
        block_keys(NAMESPACE, trunk[: rng.randrange(40) * BLOCK_BYTES] + rng.randbytes(rng.randrange(1, 30) * BLOCK_BYTES))
        for _ in range(12)
    ]
    models = {(f"worker-{number}", "one"): Worker(rng) for number in range(4)}
    for _ in range(25):
        holder = rng.choice(list(models))
        await publish(index, holder, models[holder].change(sequences))
        holders = rng.sample(list(models), rng.randrange(1, 5))
        for keys in rng.sample(sequences, 3):
            asked = keys[: rng.randrange(len(keys) + 1)]
            assert await index.match(asked, holders) == [models[each].match(asked) for each in holders]
    for holder, model in models.items():
        assert await stored_blocks(redis, *holder) == len(model.blocks)


async def test_an_unknown_worker_holds_nothing(redis: Redis, index: BlockIndex) -> None:
    assert await index.match(sequence(1, 5), [W0, W1]) == [Match(0, 0), Match(0, 0)]
    assert await index.match([], [W0]) == [Match(0, 0)]
    assert await index.match(sequence(1, 5), []) == []
    assert await stored_blocks(redis, *W0) == 0


async def test_incarnations_do_not_mix(index: BlockIndex) -> None:
    keys = sequence(1, 8)
    reborn = (W0[0], "two")
    await publish(index, W0, dict.fromkeys(keys, GPU))
    await publish(index, reborn, dict.fromkeys(keys[:3], HOST))
    assert await index.match(keys, [W0, reborn]) == [Match(8, 8), Match(0, 3)]
    await index.drop(*W0)
    assert await index.match(keys, [W0, reborn]) == [Match(0, 0), Match(0, 3)]


async def test_a_match_continues_in_the_host_tier(index: BlockIndex) -> None:
    keys = sequence(1, 9)
    tiers = [GPU, BOTH, GPU, HOST, frozenset({Tier.DISK}), HOST]
    await publish(index, W0, dict(zip(keys, tiers, strict=False)))
    assert await index.match(keys, [W0]) == [Match(3, 6)]


async def test_blocks_on_other_nodes_are_not_announced(index: BlockIndex) -> None:
    keys = sequence(1, 2)
    await publish(index, W0, {keys[0]: HOST, keys[1]: frozenset({Tier.REMOTE})})
    assert await index.match(keys, [W0]) == [Match(0, 1)]


async def test_more_changes_than_fit_one_transaction(redis: Redis, index: BlockIndex) -> None:
    keys = sequence(1, 2500)
    await publish(index, W0, dict.fromkeys(keys, BOTH))
    assert await index.match(keys, [W0]) == [Match(2500, 2500)]
    await publish(index, W0, dict.fromkeys(keys[1200:], GONE))
    assert await index.match(keys, [W0]) == [Match(1200, 1200)]
    assert await stored_blocks(redis, *W0) == 1200


async def test_an_announcement_replaces_all_blocks(redis: Redis, index: BlockIndex) -> None:
    old, new = sequence(1, 3000), sequence(2, 4)
    await index.announce(*W0, packed(dict.fromkeys(old, GPU)))
    assert await stored_blocks(redis, *W0) == 3000
    await index.announce(*W0, packed(dict.fromkeys(new, HOST)))
    assert await stored_blocks(redis, *W0) == 4
    assert await index.match(old, [W0]) == [Match(0, 0)]
    assert await index.match(new, [W0]) == [Match(0, 4)]
    assert len(await kept(redis)) == 1


async def test_says_when_it_lacks_blocks(redis: Redis, index: BlockIndex) -> None:
    keys = sequence(1, 4)
    changes = packed(dict.fromkeys(keys, GPU))
    assert not await index.renew(*W0)
    assert not await index.publish(*W0, changes)
    assert await kept(redis) == [], "without the others, these are of no use"
    await index.announce(*W0, {})
    assert await index.renew(*W0)  # a worker may hold nothing
    assert await index.publish(*W0, changes)
    assert await index.publish(*W0, packed(dict.fromkeys(keys, GONE)))
    assert await index.renew(*W0)
    await redis.flushall()
    assert not await index.publish(*W0, changes)


async def test_blocks_of_a_silent_worker_expire(redis: Redis) -> None:
    index = BlockIndex(redis, "test", ttl_s=0.2)
    await index.announce(*W0, packed(dict.fromkeys(sequence(1, 5), GPU)))
    await publish(index, W1, dict.fromkeys(sequence(1, 5), GPU))

    async def gone() -> bool:
        return await redis.dbsize() == 0

    await eventually(gone)
    assert await index.match(sequence(1, 5), [W0, W1]) == [Match(0, 0), Match(0, 0)]


async def test_every_call_of_a_worker_renews_it(redis: Redis, index: BlockIndex) -> None:
    await index.announce(*W0, {})
    (key,) = [each async for each in redis.scan_iter("pbkv:{test}:blocks:*")]
    for renewed in (
        index.renew(*W0),
        index.publish(*W0, packed(dict.fromkeys(sequence(1, 2), GPU))),
        index.announce(*W0, packed(dict.fromkeys(sequence(1, 2), GPU))),
    ):
        await redis.pexpire(key, 1000)
        await renewed
        assert await redis.pttl(key) > 1000


async def test_keys_of_a_wrong_length_are_refused(index: BlockIndex) -> None:
    with pytest.raises(ValueError, match="16 bytes, got 3"):
        await index.match([b"abc"], [W0])
    with pytest.raises(ValueError, match="16 bytes, got 0"):
        await index.publish(*W0, {b"": 1})


async def test_the_script_survives_a_restart_of_the_server() -> None:
    keys = sequence(1, 3)
    first = RedisServer.start(password="same")
    client = connect(first.url)
    index = BlockIndex(client, "test", ttl_s=60.0)
    await publish(index, W0, dict.fromkeys(keys, GPU))
    assert await index.match(keys, [W0]) == [Match(3, 3)]
    first.stop()
    with pytest.raises(Unavailable, match="Redis"):
        await index.match(keys, [W0])
    with pytest.raises(Unavailable, match="Redis"):
        await publish(index, W0, dict.fromkeys(keys, GPU))
    with RedisServer.start(port=port_of(first), password="same"):
        assert await index.match(keys, [W0]) == [Match(0, 0)]
        await client.aclose()
