"""KV events of other engines, as their own encoders wrote them; `record_engines.py` has recorded them.

vLLM 0.11 writes an event as an array, later versions as a map. SGLang writes hashes as numbers; in its format for Dynamo's
routers the messages are the same, and only the numbers differ.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.store.kv_events.messages import AllBlocksCleared, BlockRemoved, BlockStored, Event, decode, extra_of

RECORDED = sorted(Path(__file__).parent.glob("*.json"))


def meant(event: dict[str, Any]) -> Event:
    keys = [bytes.fromhex(key) for key in event.get("keys", ())]
    match event["kind"]:
        case "stored":
            parent = None if event["parent"] is None else bytes.fromhex(event["parent"])
            extra = [extra_of(each or ()) for each in event.get("extra", ())]
            return BlockStored(keys, parent, event["tokens"], 16, event["medium"], extra or ())
        case "removed":
            return BlockRemoved(keys, event["medium"])
        case _:
            return AllBlocksCleared()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_what_an_engine_has_written_is_read(recorded: Path) -> None:
    batches = json.loads(recorded.read_text())
    assert len(batches) == 3
    for batch in batches:
        assert decode(bytes.fromhex(batch["payload"])) == [meant(event) for event in batch["events"]]


def test_both_encodings_and_both_kinds_of_hashes_are_among_them() -> None:
    assert {path.stem for path in RECORDED} == {"sglang-0.5.23", "vllm-0.11.0", "vllm-0.32.0", "vllm-0.33.0"}
    first = {path.stem: bytes.fromhex(json.loads(path.read_text())[0]["payload"]) for path in RECORDED}
    assert b"\xa4type\xabBlockStored" in first["vllm-0.32.0"]  # a map
    assert b"\xabBlockStored\x92" in first["vllm-0.11.0"]  # an array: the type, then the hashes
    assert b"\xa4type" not in first["vllm-0.11.0"]
