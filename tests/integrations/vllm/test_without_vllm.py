"""The parts of the connector that need no vLLM: options and refusals, keys of requests, blocks as bytes, weights' digests."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pbkv_cluster.integrations.vllm import namespaces
from pbkv_cluster.integrations.vllm.block_layout import BlockLayout
from pbkv_cluster.integrations.vllm.namespaces import fingerprint, weights_revision
from pbkv_cluster.integrations.vllm.options import ConnectorOptions, Refused, check_engine, check_version
from pbkv_cluster.integrations.vllm.request_keys import RequestKeys

BLOCKS = 5


class FullAttentionSpec:
    pass


class MLAAttentionSpec(FullAttentionSpec):
    pass


class MambaSpec:
    pass


def engine_config(**changes: Any) -> Any:
    facts = {"policy": "recompute", "prefix": True, "dcp": 1, **changes}
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_load_failure_policy=facts["policy"]),
        cache_config=SimpleNamespace(enable_prefix_caching=facts["prefix"]),
        parallel_config=SimpleNamespace(decode_context_parallel_size=facts["dcp"]),
    )


def kv_config(*specs: object) -> Any:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0"])
def test_tested_versions_run(version: str) -> None:
    check_version(version, force=False)


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "1.32.0", "0.3.2", "dev"])
def test_other_versions_run_only_if_they_are_forced(version: str) -> None:
    with pytest.raises(Refused, match=f"this is {version}.*force_version"):
        check_version(version, force=False)
    check_version(version, force=True)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"force_version": "yes"}, "force_version"), ({"min_load_tokens": -1}, "min_load_tokens"), ({"regon": 1}, "regon")],
)
def test_a_wrong_option_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused, match=field):
        ConnectorOptions.of(options)


def test_full_attention_is_served() -> None:
    check_engine(engine_config(), kv_config(FullAttentionSpec()))
    check_engine(engine_config(), kv_config(MLAAttentionSpec()))
    uniform = SimpleNamespace(kv_cache_specs={"layer": FullAttentionSpec(), "other": FullAttentionSpec()})
    check_engine(engine_config(), kv_config(uniform))


@pytest.mark.parametrize(
    ("config", "kv_cache", "message"),
    [
        (engine_config(policy="fail"), kv_config(FullAttentionSpec()), "kv_load_failure_policy.*recompute"),
        (engine_config(prefix=False), kv_config(FullAttentionSpec()), "enable_prefix_caching"),
        (engine_config(dcp=2), kv_config(FullAttentionSpec()), "decode_context_parallel_size"),
        (engine_config(), kv_config(FullAttentionSpec(), MambaSpec()), "hybrid models.*2 groups"),
        (engine_config(), kv_config(MambaSpec()), "full attention.*MambaSpec"),
        (engine_config(), kv_config(SimpleNamespace(kv_cache_specs={"a": FullAttentionSpec(), "b": MambaSpec()})), "MambaSpec"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(config: Any, kv_cache: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_engine(config, kv_cache)


def test_a_sliding_window_is_refused() -> None:
    spec = FullAttentionSpec()
    spec.sliding_window = 128  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="full attention"):
        check_engine(engine_config(), kv_config(spec))


@dataclass
class FakeRequest:
    all_token_ids: list[int]
    extra: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # by first token of the block
    request_id: str = "request"
    num_computed_tokens: int = 0
    num_prompt_tokens: int = 0
    lora_request: Any = None

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


def keys_of(request: FakeRequest, blocks: int) -> list[bytes]:
    return list(RequestKeys(request, 4, lambda each, start, end, at: (each.extra.get(start), at)).first(blocks))


def test_keys_are_those_of_all_tokens_up_to_the_blocks_end() -> None:
    tokens = list(range(16))
    whole = keys_of(FakeRequest(tokens), 4)
    assert len(set(whole)) == 4
    assert keys_of(FakeRequest(tokens[:12]), 3) == whole[:3]
    changed = keys_of(FakeRequest([*tokens[:5], 99, *tokens[6:]]), 4)
    assert changed[0] == whole[0]
    assert not set(changed[1:]) & set(whole)


def test_keys_that_come_one_by_one_are_the_same() -> None:
    tokens = list(range(16))
    request = FakeRequest(tokens[:4])
    keys = RequestKeys(request, 4, lambda each, start, end, at: (None, at))
    found = [list(keys.first(1))]
    for end in (9, 16):
        request.all_token_ids = tokens[:end]
        found.append(list(keys.first(end // 4)))
    assert found[-1] == keys_of(FakeRequest(tokens), 4)
    assert list(keys.first(2)) == found[-1][:2]


def test_what_else_decides_the_kv_changes_all_keys_from_there_on() -> None:
    tokens = list(range(16))
    plain = keys_of(FakeRequest(tokens), 4)
    salted = keys_of(FakeRequest(tokens, {0: (("cache_salt", "tenant"),)}), 4)
    assert not set(plain) & set(salted)
    image = keys_of(FakeRequest(tokens, {8: (("mm", "an image", 0),)}), 4)
    assert image[:2] == plain[:2]
    assert not set(image[2:]) & set(plain)


def layers(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two layers with values that are nowhere alike."""
    size = int(np.prod(shape))
    values = torch.arange(2 * size, dtype=torch.float64).to(dtype).view(2, *shape)
    return {f"layer {number}": values[number] for number in range(2)}


@pytest.mark.parametrize(
    "shape",
    [(BLOCKS, 2, 4, 8), (BLOCKS, 4, 16), (2, BLOCKS, 4, 8), (3 * BLOCKS, 4, 8), (2, 3 * BLOCKS, 8)],
    ids=["keys and values in each block", "latent", "keys, then values", "smaller kernel blocks", "both"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_the_same_after_a_way_through_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    source, target = layers(*shape, dtype=dtype), layers(*shape, dtype=dtype)
    for tensor in target.values():
        tensor.zero_()
    layout, other = BlockLayout(source, BLOCKS), BlockLayout(target, BLOCKS)
    assert layout.description == other.description
    assert layout.block_bytes * BLOCKS == sum(tensor.nbytes for tensor in source.values())
    payloads = [np.zeros(layout.block_bytes, np.uint8) for _ in range(BLOCKS)]
    layout.read(range(BLOCKS), payloads)
    for number in (0, 2, 4):
        other.write(number, payloads[number])
    again = [np.zeros(layout.block_bytes, np.uint8) for _ in range(BLOCKS)]
    other.read(range(BLOCKS), again)
    for number in range(BLOCKS):
        expected = payloads[number] if number in (0, 2, 4) else np.zeros_like(payloads[number])
        assert (again[number] == expected).all()
    for number in (0, 2, 4):  # a whole block of vLLM's, in every layer, and nothing else
        other.write(number, np.zeros(layout.block_bytes, np.uint8))
    assert all(not tensor.any() for tensor in target.values())


def test_layouts_that_differ_are_told_apart() -> None:
    described = {
        BlockLayout(layers(*shape, dtype=dtype), BLOCKS).description
        for shape in ((BLOCKS, 2, 4, 8), (BLOCKS, 4, 2, 8), (2, BLOCKS, 4, 8))
        for dtype in (torch.float32, torch.bfloat16)
    }
    described.add(
        BlockLayout({name: each.transpose(1, 2) for name, each in layers(BLOCKS, 2, 4, 8).items()}, BLOCKS).description
    )
    assert len(described) == 7


def test_layers_that_share_their_kv_are_copied_once() -> None:
    shared = layers(BLOCKS, 2, 4)
    assert BlockLayout({**shared, "layer 2": shared["layer 0"]}, BLOCKS).block_bytes == BlockLayout(shared, BLOCKS).block_bytes


def test_a_layout_without_blocks_is_refused() -> None:
    with pytest.raises(Refused, match=r"layer 0 has shape \(3, 5, 7\)"):
        BlockLayout(layers(3, 5, 7), BLOCKS)


@pytest.mark.parametrize("whole_bytes", [namespaces.WHOLE_BYTES, 0])
def test_other_weights_have_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int) -> None:
    monkeypatch.setattr(namespaces, "WHOLE_BYTES", whole_bytes)
    file = tmp_path / "model.safetensors"
    content = bytearray(40 << 20)
    found = set()
    for at in (None, 0, 16 << 20, (32 << 20) + 5, (40 << 20) - 1):
        changed = bytearray(content)
        if at is not None:
            changed[at] = 1
        file.write_bytes(changed)
        found.add(fingerprint(tmp_path))
    file.write_bytes(content[:-1])
    found.add(fingerprint(tmp_path))
    assert len(found) == 6
    assert weights_revision(str(tmp_path), None) == fingerprint(tmp_path)


def test_weights_that_are_not_known_are_refused() -> None:
    assert weights_revision("owner/name", "abc") == "owner/name@abc"
    with pytest.raises(Refused, match=r"model_revision.*owner/name"):
        weights_revision("owner/name", None)


def test_a_folder_without_weights_is_refused_and_one_of_any_known_kind_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match=r"model_revision: no weights found in .*set it in kv_connector_extra_config"):
        weights_revision(str(tmp_path), "abc")
    found = set()
    for name in ("consolidated.00.pth", "model.pt", "model.bin", "model.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
        found.add(fingerprint(tmp_path))
    (tmp_path / "consolidated.00.pth").write_bytes(b"Weights")
    found.add(fingerprint(tmp_path))
    assert len(found) == 6
