"""What passes through the sidecar: requests and answers as they are, errors that say who is away, and no work for nobody."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import openai
import pytest

from pbkv_cluster.gateway.http.wire.problems import RETRY_AFTER_S
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker
from tests.integrations.sidecar.scripted_engine import ScriptedEngine
from tests.integrations.sidecar.sidecar_rig import SidecarRig, sidecar
from tests.polling import eventually

CHAT: list[Any] = [{"role": "system", "content": "You sing."}, {"role": "user", "content": "What do whales sing?"}]


async def test_openais_client_does_not_see_that_a_sidecar_is_there() -> None:
    """In front of another server of ours, which knows nothing of it."""
    async with (
        http_running(ScriptedWorker("w0", say=lambda prompt: "They sing.")) as engine,
        sidecar(engine.url) as rig,
        rig.openai() as client,
        engine.openai() as direct,
    ):
        for api in (client, direct):
            assert [model.id for model in (await api.models.list()).data] == [MODEL]
            raw = await api.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT, max_tokens=40)
            assert len(raw.headers.get_list("x-pbkv-workflow")) == 1
            answer = raw.parse()
            assert answer.choices[0].message.content == "They sing."
            stream = await api.chat.completions.create(
                model=MODEL, messages=CHAT, max_tokens=40, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "They sing."
            assert chunks[-1].usage is not None
            assert (await api.completions.create(model=MODEL, prompt="Whales", max_tokens=40)).choices[0].text == "They sing."
            response = await api.responses.create(model=MODEL, input="What do whales sing?", max_output_tokens=40)
            assert response.output_text == "They sing."
            with pytest.raises(openai.BadRequestError, match="frequency_penalty is not supported"):
                await api.chat.completions.create(model=MODEL, messages=CHAT, frequency_penalty=1.0)
            with pytest.raises(openai.NotFoundError):
                await api.chat.completions.create(model="another", messages=CHAT)


async def test_requests_and_answers_are_the_same_bytes() -> None:
    """Also those of fields, paths and media that the sidecar does not know."""
    engine = ScriptedEngine()
    body = b'{ "model":"m", "messages" : [{"role":"user","content":"h\\u00e9"}],"made_up": [1.50, {"a" :null}], "n": 1}\n'
    async with sidecar(engine) as rig:
        for at, (method, target, sent, kind) in enumerate(
            [
                ("POST", "/v1/chat/completions", body, "application/json"),
                ("POST", "/v1/chat/completions", b'{"stream": true, "messages": []}', "application/json"),
                ("POST", "/v1/audio/transcriptions?language=en%20GB", b"--x\r\n\0\xff--x--", "multipart/form-data; boundary=x"),
                ("GET", "/v1/models?a=%2F", b"", ""),
                ("DELETE", "/v1/files/a%20b", b"", ""),
                ("POST", "/tokenize", b'{"prompt": "a"}', "application/json"),
            ]
        ):
            headers = {"authorization": "Bearer secret", "x-mine": "1", **({"content-type": kind} if kind else {})}
            passed = await rig.http.request(method, rig.url + target, content=sent, headers=headers)
            got_method, got_target, got_headers, got = engine.raw[-1]
            assert len(engine.raw) == 2 * at + 1
            assert (got_method, got_target.replace(" ", "%20"), got) == (method, target, sent)
            assert {name: got_headers[name] for name in headers} == headers
            direct = await rig.http.request(method, engine.url + target, content=sent, headers=headers)
            assert (passed.status_code, passed.content) == (direct.status_code, direct.content)
            ours = {name for name in passed.headers if name.startswith("x-pbkv-")}
            assert passed.headers.keys() - ours == direct.headers.keys()
            assert passed.headers["x-pbkv-engine"] == engine.url.removeprefix("http://")


async def test_headers_that_connection_names_pass_in_no_direction() -> None:
    engine = ScriptedEngine(headers={"Connection": "X-Hop, keep-alive", "X-Hop": "1", "X-Own": "1"})
    async with sidecar(engine) as rig:
        sent = {"connection": "keep-alive, X-Mine", "x-mine": "1", "x-kept": "1"}
        answer = await rig.http.get(f"{rig.url}/v1/models", headers=sent)
        assert {"x-hop", "x-own"} & answer.headers.keys() == {"x-own"}
        _, _, got, _ = engine.raw[-1]
        assert {"x-mine", "x-kept"} & got.keys() == {"x-kept"}


async def test_paths_for_the_engines_operators_are_not_there() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine) as rig:
        adapters = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_lora_adapter/", "/v1/load%5Flora_adapter")
        for path in ("/reset_prefix_cache", "/sleep", "/", "/docs", *adapters):
            answer = await rig.http.post(f"{rig.url}{path}")
            assert answer.status_code == 404
            assert unquote(path) in answer.json()["error"]["message"]
    assert not engine.raw


async def test_a_stream_arrives_piece_by_piece_and_ends_the_engines_work_when_its_client_goes() -> None:
    engine = ScriptedEngine(say="one two three four", stop_after=2)
    async with sidecar(engine) as rig, rig.openai() as client:
        stream = await client.chat.completions.create(model="m", messages=CHAT, stream=True)
        words = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        assert words == ["one ", "two "]
        await engine.stopped.wait()
        assert not engine.left
        await stream.close()
        await eventually(lambda: engine.left == 1)
        await eventually(lambda: rig.server.proxy.steps.in_flight == 0)


async def test_a_client_that_goes_before_the_answer_begins_ends_the_engines_work_too() -> None:
    engine = ScriptedEngine(stop_after=0)
    async with sidecar(engine) as rig:
        asking = asyncio.create_task(rig.chat("Anything?", stream=True))
        await engine.stopped.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: engine.left == 1)
        await eventually(lambda: rig.server.proxy.steps.in_flight == 0)


async def test_an_engine_that_is_away_costs_nothing_while_another_is_there() -> None:
    """One that is known to be away is not asked; one that has just gone is, and then the other."""
    engines = [ScriptedEngine(say=name) for name in ("first", "second")]
    async with sidecar(*engines, health_interval_s=60.0) as rig:
        await engines[0].go_away()
        answers = [await rig.chat(f"Question {number}?") for number in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"second"}
        assert rig.server.proxy.decisions["step_retried"] <= 1


@asynccontextmanager
async def silent_engines(number: int) -> AsyncIterator[tuple[list[str], list[bytes]]]:
    """Engines that are well, but close the connection once they have a request. Their URLs, and the requests' first lines."""
    asked = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        length = 0
        while header := (await reader.readline()).strip().lower():
            if header.startswith(b"content-length:"):
                length = int(header.partition(b":")[2])
        await reader.readexactly(length)
        if line.startswith(b"GET /health "):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        else:
            asked.append(line)
        writer.close()

    servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(number)]
    try:
        yield [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers], asked
    finally:
        for server in servers:
            server.close()


async def test_what_an_engine_may_have_is_repeated_once_if_it_is_a_step_and_never_otherwise() -> None:
    async with silent_engines(3) as (urls, asked), sidecar(*urls, health_interval_s=60.0) as rig:
        assert (await rig.chat("A question?")).status_code == 502
        assert len(asked) == 2
        assert (await rig.http.post(f"{rig.url}/v1/embeddings", json={"input": "a"})).status_code == 502
        assert len(asked) == 3
        assert (await rig.http.get(f"{rig.url}/v1/models")).status_code == 502
        assert len(asked) == 5
        assert len(rig.server.fleet.live()) == 3, "an engine that was reached is not lost"
        assert not rig.server.proxy.decisions["worker_lost"]


async def test_a_step_whose_engine_breaks_off_before_its_answer_is_answered_by_another() -> None:
    engine = ScriptedEngine()
    async with silent_engines(1) as (urls, asked), sidecar(*urls, engine, health_interval_s=60.0) as rig:
        # At once, so that load spreads them: where the first one goes depends on what has been measured by then.
        answers = await asyncio.gather(*(rig.chat(f"Question {number}?") for number in range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert engine.prompts == 6
        assert asked


@pytest.mark.parametrize("status", [502, 503])
async def test_an_engine_that_cannot_serve_now_is_left_for_another(status: int) -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    async with sidecar(*engines, health_interval_s=60.0) as rig:
        engines[0].status = status
        for number in range(4):
            assert (await rig.chat(f"Question {number}?")).status_code == 200
        engines[1].status = status
        answer = await rig.chat("And now?")
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, "scripted")


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_what_an_engine_says_of_a_request_is_told_and_no_reason_to_ask_another(status: int) -> None:
    engines = [ScriptedEngine(status=200), ScriptedEngine(status=200)]
    async with sidecar(*engines, health_interval_s=60.0) as rig:
        for engine in engines:
            engine.status = status
        assert (await rig.chat("A question?")).status_code == status
        assert sum(engine.prompts for engine in engines) == 1
        await eventually(lambda: not len(rig.server.proxy.workflows))


async def test_without_any_engine_the_error_says_so_in_openais_shape() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine) as rig, rig.openai() as client:
        await engine.go_away()
        await eventually(lambda: not rig.server.fleet.live())
        with pytest.raises(openai.InternalServerError, match="no engine answers") as raised:
            await client.chat.completions.create(model="m", messages=CHAT)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == str(RETRY_AFTER_S)
        assert (await rig.http.get(f"{rig.url}/health")).status_code == 503
        await engine.come_back()
        await eventually(lambda: bool(rig.server.fleet.live()))
        assert (await rig.http.get(f"{rig.url}/health")).json() == {"status": "ok", "engines": 1}
        assert (await rig.chat("Again?")).status_code == 200


async def test_an_answer_that_breaks_off_ends_with_an_error() -> None:
    """With an event, which OpenAI's client raises."""
    engine = ScriptedEngine(say="one two three", break_after=2)
    async with sidecar(engine) as rig, rig.openai() as client:
        stream = await client.chat.completions.create(model="m", messages=CHAT, stream=True)
        words = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        assert words == ["one ", "two "]
        with pytest.raises(openai.APIError, match="broken its answer off"):
            await anext(stream)
        await eventually(lambda: rig.server.proxy.decisions["step_failed"] == 1)


async def test_a_body_beyond_the_bound_is_refused_and_no_page_of_a_browser_is_served() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine, gateway={"http_max_body_bytes": 2048}) as rig:
        assert (await rig.chat("x" * 4096)).status_code == 413
        text = await rig.http.post(
            f"{rig.url}/v1/chat/completions", content=json.dumps({"messages": CHAT}), headers={"content-type": "text/plain"}
        )
        assert text.status_code == 415
    assert not engine.bodies


async def test_steps_in_flight_are_bounded() -> None:
    engine = ScriptedEngine(stop_after=0)
    async with sidecar(engine, gateway={"max_steps": 1}) as rig:
        first = asyncio.create_task(rig.chat("One?", stream=True))
        await engine.stopped.wait()
        assert (await rig.chat("Two?")).status_code == 429
        engine.go.set()
        assert (await first).status_code == 200


async def status_of(rig: SidecarRig) -> Any:
    return (await rig.http.get(f"{rig.url}/pbkv/status")).json()


async def test_metrics_and_status_tell_of_engines_and_steps_but_not_of_prompts() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine) as rig:
        await rig.chat("A secret question?")
        await rig.http.get(f"{rig.url}/v1/models")
        await eventually(lambda: rig.server.proxy.steps.in_flight == 0)
        text = (await rig.http.get(f"{rig.url}/metrics")).text
        name = engine.url.removeprefix("http://")
        assert 'pbkv_steps_total{outcome="finished"} 1.0' in text
        assert f'pbkv_worker_reachable{{worker="{name}"}} 1.0' in text
        assert "pbkv_sidecar_passed_total 1.0" in text
        told = await status_of(rig)
        assert (told["steps"], told["engines"][0]["url"], told["engines"][0]["answers"]) == (1, engine.url, True)
        assert "secret" not in text + json.dumps(told)
