"""Which engine gets a step: the one that holds most of its prompt, by its KV events, or for want of them by its past texts."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pbkv_cluster.integrations.sidecar.engines.engine import Engine
from pbkv_cluster.integrations.sidecar.reading.asked import Kind, read_request
from pbkv_cluster.store.kv_events.messages import AllBlocksCleared, BlockStored
from tests.integrations.sidecar.scripted_engine import BLOCK, ScriptedEngine
from tests.integrations.sidecar.sidecar_rig import SidecarRig, codec, sidecar, tokenizer_path
from tests.polling import eventually

LONG = "The whale sings a long song of the deep sea, and it sings it again. " * 40


def engines(number: int = 2, **fields: Any) -> list[ScriptedEngine]:
    return [ScriptedEngine(codec=codec(), **fields) for _ in range(number)]


async def subscribed(rig: SidecarRig, all_engines: Sequence[ScriptedEngine]) -> None:
    """Waits until the sidecar hears the engines' events, and then holds nothing of them."""
    for each, engine in zip(rig.server.fleet.engines, all_engines, strict=True):
        await _hears(each, engine)


async def _hears(known_as: Engine, engine: ScriptedEngine) -> None:
    def heard() -> bool:
        engine.publish(BlockStored([b"mark"], None, [1] * BLOCK, BLOCK, "GPU"))
        return len(known_as.blocks) > 0

    await eventually(heard)
    engine.publish(AllBlocksCleared())
    await eventually(lambda: len(known_as.blocks) == 0 and known_as.is_exact)


async def known(rig: SidecarRig, all_engines: Sequence[ScriptedEngine]) -> None:
    """Waits until the sidecar knows what the engines hold."""
    await eventually(
        lambda: [len(each.blocks) for each in rig.server.fleet.engines] == [len(engine.held) for engine in all_engines]
    )


def asked(all_engines: Sequence[ScriptedEngine]) -> list[int]:
    return [engine.prompts for engine in all_engines]


@pytest.mark.parametrize("tokenizer", [True, False])
async def test_prompts_with_one_beginning_go_to_one_engine(tokenizer: bool) -> None:
    """In workflows that have nothing else in common."""
    all_engines = engines()
    async with sidecar(*all_engines, tokenizer=tokenizer_path() if tokenizer else "") as rig:
        await subscribed(rig, all_engines)
        for number in range(4):
            await rig.chat(f"Question {number}?", system=LONG)
            await known(rig, all_engines)
        assert sorted(asked(all_engines)) == [0, 4]
        assert rig.server.proxy.decisions["route_prefix"] == 3
        for each in rig.server.fleet.engines:
            assert each.is_exact
        assert rig.server.proxy.prompts.compares_tokens is tokenizer


@pytest.mark.parametrize("tokenizer", [True, False])
async def test_an_engine_that_has_evicted_a_prompt_has_no_claim_to_it(tokenizer: bool) -> None:
    all_engines = engines()
    async with sidecar(*all_engines, tokenizer=tokenizer_path() if tokenizer else "") as rig:
        await subscribed(rig, all_engines)
        await rig.chat("Question 0?", system=LONG)
        await known(rig, all_engines)
        had = asked(all_engines).index(1)
        held = rig.server.fleet.engines[had]
        prompt = await rig.server.proxy.prompts.read(_last_asked(rig, LONG), "")
        assert held.cached(prompt).gpu > 500
        all_engines[had].evict()
        await known(rig, all_engines)
        assert held.cached(prompt).gpu == 0


def _last_asked(rig: SidecarRig, system: str) -> Any:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Question 0?"}]
    return read_request(Kind.CHAT, json.dumps({"model": "m", "messages": messages}).encode(), {})


async def test_another_clients_prompts_are_known_by_their_tokens() -> None:
    """They did not pass through the sidecar, and their engine hashes blocks in a way of its own."""
    all_engines = engines()
    async with sidecar(*all_engines, tokenizer=tokenizer_path()) as rig:
        await subscribed(rig, all_engines)
        for target in (1, 0):
            text = LONG if target else LONG.upper()
            body = {"model": "m", "messages": [{"role": "system", "content": text}, {"role": "user", "content": "A?"}]}
            await rig.http.post(f"{all_engines[target].url}/v1/chat/completions", json=body)
        await known(rig, all_engines)
        before = asked(all_engines)
        assert before == [1, 1]
        await rig.chat("B?", system=LONG)
        assert asked(all_engines) == [1, 2]
        await rig.chat("C?", system=LONG.upper())
        assert asked(all_engines) == [2, 2]


async def test_a_tokenizer_that_counts_otherwise_than_the_engine_is_not_used() -> None:
    all_engines = [ScriptedEngine()]  # it says 100 tokens of everything
    async with sidecar(*all_engines, tokenizer=tokenizer_path()) as rig:
        await rig.chat("Question 0?", system=LONG)
        await eventually(lambda: rig.server.proxy.prompts.mismatches == 1)
        assert not rig.server.proxy.prompts.compares_tokens
        await rig.chat("Question 1?", system=LONG)
        await eventually(lambda: rig.server.proxy.prompts.mismatches == 2)


async def test_steps_with_nothing_in_common_are_spread_by_load() -> None:
    all_engines = engines(stop_after=0)
    async with sidecar(*all_engines) as rig:
        asking = []
        for number in range(4):
            asking.append(asyncio.create_task(rig.chat(f"{number} " + LONG[number:], system=f"Agent {number}", stream=True)))
            await eventually(lambda: sum(asked(all_engines)) == len(asking))
        assert asked(all_engines) == [2, 2]
        for engine in all_engines:
            engine.go.set()
        await asyncio.gather(*asking)


async def test_an_engine_that_comes_back_without_kv_events_has_to_earn_its_prompts_again() -> None:
    all_engines = [ScriptedEngine(), ScriptedEngine()]
    async with sidecar(*all_engines) as rig:
        await rig.chat("Question 0?", system=LONG)
        had = asked(all_engines).index(1)
        known_as = rig.server.fleet.engines[had]
        assert len(known_as.texts)
        key = known_as.key
        await all_engines[had].go_away()
        await eventually(lambda: not known_as.is_live)
        await all_engines[had].come_back()
        await eventually(lambda: known_as.is_live)
        assert not len(known_as.texts)
        assert known_as.key != key
