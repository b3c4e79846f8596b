"""Records KV events as other engines encode them: `python -m tests.store.kv_events.record_engines FILE ENGINE-VERSION`.

FILE is the module of vLLM or SGLang that defines their events (`vllm/distributed/kv_events.py`, SGLang's
`srt/disaggregation/kv_events.py`). Only its message classes are run, so nothing of the engine but that file is needed, and no
more than `msgspec` in this environment. The result is beside this module: bytes as the engine's publisher sends them, and what
they must be read as.
"""

import argparse
import ast
import enum
import json
import typing
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_BASES = {"Struct", "EventBatch", "KVCacheEvent"}  # of the messages
_BYTES = [bytes([number]) * 32 for number in range(1, 4)]
_NUMBERS = [1 << 62, -(1 << 62), -1]


def messages(file: Path) -> dict[str, Any]:
    """The message classes of a module, and the enumerations that they use."""
    import msgspec

    wanted = [
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        and ({ast.unparse(base).rpartition(".")[2] for base in node.bases} & {*_BASES, "Enum"})
    ]
    found: dict[str, Any] = {
        **vars(typing),
        "msgspec": msgspec,
        "enum": enum,
        "ExternalBlockHash": bytes | int,
    }
    exec(compile(ast.Module([*wanted], []), str(file), "exec"), found)
    return found


def record(file: Path) -> list[dict[str, Any]]:
    """Batches of the module's events, encoded."""
    import msgspec

    module = messages(file)
    numbers = "list[int]" in str(module["BlockStored"].__annotations__["block_hashes"])
    keys: list[Any] = [*_NUMBERS] if numbers else [*_BYTES]
    names = [key.to_bytes(8, "big", signed=True).hex() if numbers else key.hex() for key in keys]
    media = [each.value for each in module["StorageMedium"]] if "StorageMedium" in module else ["GPU", "CPU", "STORAGE"]
    stored = {"block_size": 16, "lora_id": None, "lora_name": None}
    extra: dict[str, Any] = {
        "extra_keys": [("salt",), None],
        "group_idx": 0,
        "locality": "LOCAL",
        "session_id": "trip",
        "cache_salt": "salt",
    }

    def made(kind: str, **fields: Any) -> Any:
        known = module[kind].__struct_fields__
        return module[kind](**{name: value for name, value in fields.items() if name in known})

    told = [each and [*each] for each in extra["extra_keys"]] if "extra_keys" in module["BlockStored"].__struct_fields__ else []
    batches = []
    for medium in media[:3]:
        events = [
            made("BlockStored", block_hashes=keys[:2], parent_block_hash=None, token_ids=[*range(32)], medium=medium, **stored),
            made(
                "BlockStored",
                block_hashes=keys[2:],
                parent_block_hash=keys[1],
                token_ids=[7] * 16,
                medium=medium,
                **stored,
                **extra,
            ),
            made("BlockRemoved", block_hashes=keys[:1], medium=medium, group_idx=0),
            made("AllBlocksCleared"),
        ]
        kept = medium if "medium" in module["BlockRemoved"].__struct_fields__ else "GPU"
        meant = [
            {"kind": "stored", "keys": names[:2], "parent": None, "tokens": [*range(32)], "medium": kept},
            {"kind": "stored", "keys": names[2:], "parent": names[1], "tokens": [7] * 16, "medium": kept, "extra": told},
            {"kind": "removed", "keys": names[:1], "medium": kept},
            {"kind": "cleared"},
        ]
        payload = msgspec.msgpack.Encoder().encode(module["KVEventBatch"](ts=1764000000.5, events=events))
        batches.append({"payload": payload.hex(), "events": meant})
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("name", help="engine and version, such as vllm-0.32.0")
    options = parser.parse_args()
    (HERE / f"{options.name}.json").write_text(json.dumps(record(options.file), indent=1) + "\n")


if __name__ == "__main__":
    main()
