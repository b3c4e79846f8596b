"""The gateway's HTTP API in a real cluster, with OpenAI's client and the small model."""

from typing import Any

import pytest
from openai import OpenAI

from pbkv_cluster.cli.serving.serve import print_addresses
from pbkv_cluster.client import Client
from pbkv_cluster.cluster.local import LocalCluster

WORDS = "The sea is deep and full of life. " * 20


def test_a_conversation_reuses_its_beginning(cluster: LocalCluster) -> None:
    with OpenAI(base_url=f"http://{cluster.http_address}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        messages: list[Any] = [
            {"role": "system", "content": WORDS},
            {"role": "user", "content": "What lives there?"},
        ]
        workflows = set()
        for turn in range(3):
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=messages, max_tokens=6, temperature=0, extra_body={"ignore_eos": True}
            )
            workflows.add(raw.headers["x-pbkv-workflow"])
            answer = raw.parse()
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 6
            details = answer.usage.prompt_tokens_details
            assert details is not None
            assert details.cached_tokens is not None
            if turn:
                assert details.cached_tokens >= 128, "the system prompt and the turns before it are cached"
            messages += [
                {"role": "assistant", "content": answer.choices[0].message.content or ""},
                {"role": "user", "content": f"And number {turn}?"},
            ]
        assert len(workflows) == 1
        chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=9, stream=True))
        assert sum(bool(choice.finish_reason) for chunk in chunks for choice in chunk.choices) == 1


def test_it_is_announced(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    print_addresses(cluster)
    assert f"http       http://{cluster.http_address}/v1" in capsys.readouterr().out
    with Client(cluster.gateway_address) as client:
        assert client.status().http_address == cluster.http_address
