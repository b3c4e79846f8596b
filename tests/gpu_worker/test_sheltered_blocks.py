"""Blocks that leave the host memory of a worker find shelter in that of a sibling: real workers, a real arena."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cache.prefetch.shelter import PATHS_BYTES
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2
from pbkv_cluster.store.block_map import BlockMap
from tests.gpu_worker.test_restored_worker import At
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, config, host_store, serving, step
from tests.polling import eventually

POOLS = {"gpu_blocks": 12, "host_blocks": 9}  # full after five prompts: the first one's blocks will leave next
PROMPTS = [list(range(start, start + 70)) for start in range(0, 600, 100)]  # four full blocks each


class Pair:
    """Two workers of a node, each told at once what the other holds."""

    def __init__(self) -> None:
        self.rigs: dict[str, Rig] = {}
        self.maps = {"first": BlockMap(SHARED), "second": BlockMap(SHARED)}

    @property
    def first(self) -> Rig:
        return self.rigs["first"]

    @property
    def second(self) -> Rig:
        return self.rigs["second"]


@asynccontextmanager
async def pair(model: Path, seeks: bool = True, **cache: Any) -> AsyncIterator[Pair]:
    settings = config(model, engine=POOLS, cache={"policy": "lru", **cache})
    both = Pair()
    for map_, other in ((both.maps["first"], "second"), (both.maps["second"], "first")):
        map_.replace((other, "1"), "node", ())

    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(host_store(32 << 20))
        for name, other in (("first", "second"), ("second", "first")):

            async def siblings(other: str = other) -> list[str]:
                return [both.rigs[other].facts.address] if other in both.rigs else []

            def tell(label: Any, where: Any, name: str = name, map_: BlockMap = both.maps[other]) -> None:
                map_.change((name, "1"), [(label.key, where.pack())])

            both.rigs[name] = await stack.enter_async_context(
                serving(
                    settings,
                    name,
                    host_store=At(address),
                    on_change=tell,
                    blocks=both.maps[name],
                    node_id="node",
                    siblings=siblings if seeks else None,
                )
            )
        yield both


async def fill(rig: Rig, prompts: list[list[int]]) -> list[list[int]]:
    """Each prompt is the first step of a workflow that goes on. Returns their outputs."""
    return [(await rig.run(step(prompt, workflow_id=f"w{number}"))).tokens for number, prompt in enumerate(prompts)]


@pytest.mark.usefixtures("prefill")
async def test_what_was_dropped_comes_back_from_where_it_was_sheltered(llama: Path) -> None:
    async with pair(llama) as both:
        outputs = await fill(both.first, PROMPTS[:5])

        async def sheltered() -> bool:
            return (await both.second.decisions()).get("shelter", 0) >= 4

        await eventually(sheltered)
        await eventually(both.second.copies_ended)
        outputs += [(await both.first.run(step(PROMPTS[5], workflow_id="w5"))).tokens]
        again = [await both.first.run(step(prompt, workflow_id=f"w{n}")) for n, prompt in enumerate(PROMPTS)]
        assert [answer.tokens for answer in again] == outputs
        assert sum(answer.usage.delivered.get(Tier.SIBLING, 0) for answer in again) >= 64
        for rig in both.rigs.values():
            await rig.worker.thread.call(lambda engine: engine.cache.check_integrity())


@pytest.mark.usefixtures("prefill")
async def test_without_siblings_it_is_computed_again(llama: Path) -> None:
    async with pair(llama, seeks=False) as both:
        await fill(both.first, PROMPTS)
        again = [await both.first.run(step(prompt, workflow_id=f"w{n}")) for n, prompt in enumerate(PROMPTS)]
        assert all(Tier.SIBLING not in answer.usage.delivered for answer in again)
        assert (await both.second.decisions()).get("shelter", 0) == 0


@pytest.mark.usefixtures("prefill")
async def test_a_worker_keeps_for_itself_what_a_sibling_only_shelters(llama: Path) -> None:
    """The sibling drops it as soon as it needs the room, so it is no reason to keep no copy here."""
    async with pair(llama) as both:
        await fill(both.first, PROMPTS[:5])

        async def sheltered() -> bool:
            return (await both.second.decisions()).get("shelter", 0) >= 4

        await eventually(sheltered)
        for number in (0, 1, 2, 3, 4, 0, 1):  # what was sheltered moves to the GPU and leaves it again
            await both.first.run(step(PROMPTS[number], workflow_id=f"w{number}"))
        assert (await both.first.decisions()).get("second_copy_skipped", 0) == 0


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ({"namespace_digest": b"short", "tokens": types_pb2.PackedTokens(data=bytes(64))}, "paths[0].namespace_digest"),
        ({"namespace_digest": bytes(16), "tokens": types_pb2.PackedTokens(data=bytes(60))}, "paths[0].tokens"),
        ({"namespace_digest": bytes(16), "tokens": types_pb2.PackedTokens(data=bytes(63))}, "paths[0].tokens.data"),
        ({"namespace_digest": bytes(16)}, "paths[0].tokens"),
        (
            {"namespace_digest": bytes(16), "tokens": types_pb2.PackedTokens(data=bytes(64)), "first_block": -1},
            "paths[0].first_block",
        ),
        ({"namespace_digest": bytes(16), "tokens": types_pb2.PackedTokens(data=bytes(PATHS_BYTES + 64))}, "paths"),
    ],
)
async def test_a_malformed_path_is_refused(llama: Path, path: dict[str, Any], field: str) -> None:
    async with serving(config(llama, engine=POOLS)) as rig:
        request = worker_pb2.ShelterRequest(paths=[worker_pb2.ShelterRequest.Path(**path)])
        with pytest.raises(Exception) as refused:  # noqa: PT011
            await rig.stub.Shelter(request, timeout=PATIENCE_S)
        error = from_rpc(refused.value)  # type: ignore[arg-type]
        assert isinstance(error, InvalidArgument)
        assert error.field == field
