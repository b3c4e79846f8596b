"""Streamed text, with the byte-level tokenizer of the random models, in which most characters are several tokens."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import unpack
from pbkv_cluster.gpu_worker.engine.text_stream import TextStream

VOCABULARY = 1000  # ids that are drawn; the tokenizer has these and more


@pytest.fixture(scope="session")
def codec(model_dirs: dict[str, Path]) -> TextCodec:
    return TextCodec.load(str(model_dirs["llama"]))


def stream(codec: TextCodec, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """What each token released, and at last `finish`."""
    text = TextStream(codec.decode, stop)
    released = [text.push(token) for token in ids]
    return [*released, text.finish()], text


def encode(codec: TextCodec, *pieces: str) -> list[int]:
    """Tokens of the pieces; no token crosses from one piece into the next."""
    return [token for piece in pieces for token in unpack(codec.encode(piece))]


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=40))
def test_streamed_text_equals_the_text_decoded_at_once(codec: TextCodec, ids: list[int]) -> None:
    assert "".join(stream(codec, ids)[0]) == codec.decode(ids)


@settings(deadline=None, max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_part_of_a_character_is_ever_released(codec: TextCodec, text: str) -> None:
    ids = encode(codec, text)
    whole = codec.decode(ids)  # decoding leaves out special tokens
    released, _ = stream(codec, ids)
    assert "".join(released) == whole
    for end in range(len(released)):
        assert whole.startswith("".join(released[:end]))


def test_characters_of_several_tokens_are_released_whole(codec: TextCodec) -> None:
    ids = encode(codec, "né 漢🦜!")
    assert len(ids) > len("né 漢🦜!")
    released, _ = stream(codec, ids)
    assert released == ["n", "", "é", " ", "", "", "漢", "", "", "", "🦜", "!", ""]


def test_an_incomplete_character_is_released_at_the_end(codec: TextCodec) -> None:
    first, *_ = encode(codec, "漢")
    released, _ = stream(codec, [*encode(codec, "a"), first])
    assert released == ["a", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("pieces", "stop", "released"),
    [
        pytest.param(["a", "b", "c"], ["b"], ["a", "", "", ""], id="one token"),
        pytest.param(["x", "E", "N", "D", "y"], ["END"], ["x", "", "", "", "", ""], id="several tokens"),
        pytest.param(["x", "E", "N", "d"], ["END"], ["x", "", "", "ENd", ""], id="held back, then released"),
        pytest.param(["x", "E", "N"], ["END"], ["x", "", "", "EN"], id="held back to the end"),
        pytest.param(["a", "a", "a", "b"], ["aab"], ["", "", "a", "", ""], id="a stop that overlaps itself"),
        pytest.param(["1", "2", "3", "4"], ["34", "23"], ["1", "", "", "", ""], id="the first of several"),
        pytest.param(["1", "2", "3", "x", "2", "3", "4"], ["9", "234"], ["1", "", "", "23x", "", "", "", ""], id="second try"),
        pytest.param(["(", "é", ")"], ["é"], ["(", "", "", "", ""], id="a stop of two tokens of one character"),
        pytest.param(["a", "\n", "\n"], ["\n\n"], ["a", "", "", ""], id="white space"),
    ],
)
def test_stop_strings(codec: TextCodec, pieces: list[str], stop: list[str], released: list[str]) -> None:
    got, text = stream(codec, encode(codec, *pieces), stop)
    assert got == released
    assert text.stopped == any(each in "".join(pieces) for each in stop)


def test_the_first_of_several_stop_strings_in_one_token_ends_the_text(codec: TextCodec) -> None:
    (token,) = encode(codec, "self")
    for stop in (["f", "l", "lf"], ["l", "f"]):
        assert stream(codec, [token], stop)[0] == ["se", ""]


def test_stopped_is_set_by_the_token_that_completes_a_stop_string(codec: TextCodec) -> None:
    text = TextStream(codec.decode, ["END"])
    seen = []
    for token in encode(codec, "E", "N", "D", "E"):
        text.push(token)
        seen.append(text.stopped)
    assert seen == [False, False, True, True]


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=12),
    stop=st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_right_before_a_stop_string_and_nothing_is_lost(codec: TextCodec, pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    released, text = stream(codec, encode(codec, *pieces), stop)
    out = "".join(released)
    assert text.stopped == any(each in whole for each in stop)
    assert whole.startswith(out)
    assert not any(each in out for each in stop)
    if text.stopped:
        assert any(whole.startswith(each, len(out)) for each in stop)
    else:
        assert out == whole


@settings(deadline=None, max_examples=100)
@given(text=st.text("ab", max_size=30), stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_only_a_possible_stop_string_is_held_back(codec: TextCodec, text: str, stop: list[str]) -> None:
    running = TextStream(codec.decode, stop)
    out = ""
    for end, token in enumerate(encode(codec, *text), 1):
        out += running.push(token)
        if running.stopped:
            break
        held = text[len(out) : end]
        longest = max((n for each in stop for n in range(len(each)) if text[:end].endswith(each[:n])), default=0)
        assert len(held) == longest
