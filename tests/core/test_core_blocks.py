"""Block keys: equal in every process, and different whenever the blocks' bytes could differ."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import KEY_BYTES, Namespace, block_keys, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, pack

NAMESPACE = Namespace(model="m", revision="r", dtype="float32", layout="l")
PROMPT = pack(range(3 * BLOCK_TOKENS + 5))

_IN_ANOTHER_PROCESS = """
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.tokens import pack
print([key.hex() for key in block_keys(Namespace("m", "r", "float32", "l"), pack(range(53)))])
"""


def test_the_keys_of_a_known_prompt_never_change() -> None:
    """Keys are stored in an index that outlives a release. If they must change, the namespace must change too."""
    assert [key.hex() for key in block_keys(NAMESPACE, PROMPT)] == [
        "6384adc03a331499a1f96a19779b3c72",
        "17a70831769fd1f13b815b61cd3bc60b",
        "651ae78c5fa2b261ad90888854084832",
    ]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_keys_do_not_depend_on_the_hash_seed(seed: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == str([key.hex() for key in block_keys(NAMESPACE, PROMPT)])


def test_only_full_blocks_have_keys() -> None:
    keys = block_keys(NAMESPACE, PROMPT)
    assert len(keys) == 3
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert block_keys(NAMESPACE, PROMPT[: BLOCK_BYTES - 1]) == []
    assert block_keys(NAMESPACE, b"") == []


@given(st.binary(max_size=6 * BLOCK_BYTES), st.integers(0, 6))
def test_a_chain_of_keys_can_be_continued_from_any_block(packed: bytes, cut: int) -> None:
    keys = block_keys(NAMESPACE, packed)
    cut = min(cut, len(keys))
    parent = keys[cut - 1] if cut else NAMESPACE.digest()
    assert keys[cut:] == chain_keys(parent, packed[cut * BLOCK_BYTES :])


@given(st.binary(min_size=4 * BLOCK_BYTES, max_size=4 * BLOCK_BYTES), st.integers(0, 4 * BLOCK_BYTES - 1))
def test_a_changed_byte_changes_the_key_of_its_block_and_of_all_later_ones(packed: bytes, at: int) -> None:
    changed = packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
    equal = [a == b for a, b in zip(block_keys(NAMESPACE, packed), block_keys(NAMESPACE, changed), strict=True)]
    assert equal == [block < at // BLOCK_BYTES for block in range(4)]


def test_equal_blocks_at_two_positions_have_two_keys() -> None:
    assert len(set(block_keys(NAMESPACE, bytes(8 * BLOCK_BYTES)))) == 8


@pytest.mark.parametrize("field", [field.name for field in fields(Namespace)])
def test_every_field_of_the_namespace_changes_the_keys(field: str) -> None:
    value: Any = getattr(NAMESPACE, field)
    changed: Any = {field: value + 1 if isinstance(value, int) else f"{value}x"}
    other = replace(NAMESPACE, **changed)
    assert not set(block_keys(NAMESPACE, PROMPT)) & set(block_keys(other, PROMPT))


_TEXT = st.text(st.sampled_from("a:0\0\n1"), max_size=6)


@given(*[st.builds(Namespace, model=_TEXT, revision=_TEXT, dtype=_TEXT, layout=_TEXT, rank=_TEXT, salt=_TEXT)] * 2)
def test_no_two_namespaces_share_a_digest(one: Namespace, other: Namespace) -> None:
    assert (one == other) == (one.digest() == other.digest())


def test_moving_text_between_fields_changes_the_digest() -> None:
    one = replace(NAMESPACE, model="a\x001:b", revision="c")
    other = replace(NAMESPACE, model="a", revision="b\x001:c")
    assert one.digest() != other.digest()
