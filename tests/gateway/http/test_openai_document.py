"""The examples of docs/openai.md run."""

import asyncio
import json
import re
import sys
from pathlib import Path

from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker

DOCUMENT = Path(__file__).parents[3] / "docs" / "openai.md"
PLACE = "127.0.0.1:26180"
TIMEOUT_S = 60


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_examples_in_python_run() -> None:
    openai, anthropic = examples("python")
    async with http_running(ScriptedWorker("w0", say=lambda prompt: "They sing.")) as http:
        told = await output(sys.executable, "-c", openai.replace(PLACE, http.server.address))
        assert told.startswith("They sing.\n0 of ")
        assert told.endswith("They sing.")
        assert await output(sys.executable, "-c", anthropic.replace(PLACE, http.server.address)) == "They sing. 0\n"


async def test_the_examples_with_curl_run() -> None:
    (commands,) = examples("sh")
    commands = commands.replace('"MODEL"', f'"{MODEL}"')
    async with http_running(ScriptedWorker("w0", say=lambda prompt: "They sing.")) as http:
        told = await output("bash", "-ec", commands.replace(PLACE, http.server.address))
    decoder, answers, at = json.JSONDecoder(), [], 0
    while at < len(told):
        answer, at = decoder.raw_decode(told, at)
        answers.append(answer)
    chat, tokens, ended = answers
    assert chat["choices"][0]["message"]["content"] == "They sing."
    assert tokens["count"] == len("How many tokens?")
    assert ended == {"id": "article-17", "object": "workflow.ended"}


def test_the_tables_are_complete() -> None:
    from pbkv_cluster.gateway.http.sessions import hints
    from pbkv_cluster.gateway.http.tools.formats import TOOL_FORMATS

    text = DOCUMENT.read_text()
    for name in TOOL_FORMATS.names():
        assert f"`{name}`" in text
    said = [value for name, value in vars(hints).items() if name.isupper() and name[0] != "_" and isinstance(value, str)]
    assert len(said) == 11
    for header in said:
        assert f"`{header}`" in text
