"""Streamed text: with the byte-level tokenizer of the random models, in which most characters are several tokens, and with one
whose decoder leaves out the first space.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

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
    text = TextStream(codec.decode, stop, codec.special_tokens)
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


SPECIAL = ["<|end|>", "<|tool|>"]


@pytest.mark.parametrize(
    ("pieces", "stop", "released"),
    [
        pytest.param(["a", "<|end|>", "b"], ["<|end|>"], "a", id="alone"),
        pytest.param(["a", "<|tool|>", "b"], ["<|end|>"], "ab", id="another"),
        pytest.param(["a", "<|tool|>", "x", "b"], ["<|tool|>x"], "a", id="before text"),
        pytest.param(["a", "<|tool|>", "y", "b"], ["<|tool|>x"], "ayb", id="before other text"),
        pytest.param(["a", "\n", "<|tool|>", "b"], ["\n<|tool|>"], "a", id="after text"),
        pytest.param(["a", "\n", "b", "<|tool|>"], ["\n<|tool|>"], "a\nb", id="after other text"),
        pytest.param(["a", "<|tool|>", "<|end|>", "b"], ["<|tool|><|end|>"], "a", id="two of them"),
        pytest.param(["a", "E", "<|tool|>", "N", "D"], ["END", "<|tool|>x"], "a", id="inside another stop string"),
        pytest.param(["a", "<|", "tool", "|>", "b"], ["|>b", "<|tool|>x"], "a<|tool", id="written out"),
        pytest.param(["a", "<|tool|>"], ["<|tool|>x"], "a", id="held back to the end"),
    ],
)
def test_special_tokens_in_stop_strings(codec: TextCodec, pieces: list[str], stop: list[str], released: str) -> None:
    got, text = stream(codec, encode(codec, *pieces), stop)
    assert "".join(got) == released
    assert text.stopped == (released != codec.decode(encode(codec, *pieces)))


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(st.sampled_from(["a", "b", "ab", *SPECIAL]), max_size=12),
    stop=st.lists(st.lists(st.sampled_from(["a", "b", *SPECIAL]), min_size=1, max_size=3).map("".join), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string_with_or_without_special_tokens(
    codec: TextCodec, pieces: list[str], stop: list[str]
) -> None:
    released, text = stream(codec, encode(codec, *pieces), stop)

    def plain(written: str) -> str:
        for token in SPECIAL:
            written = written.replace(token, "")
        return written

    def stops(count: int) -> list[int]:
        """Lengths of the text before the stop strings in so many pieces."""
        written = "".join(pieces[:count])
        named = [each for each in stop if plain(each) != each]
        return [plain(written).index(each) for each in stop if each in plain(written)] + [
            len(plain(written[: written.index(each)])) for each in named if each in written
        ]

    ended = next((count for count in range(len(pieces) + 1) if stops(count)), None)
    assert text.stopped == (ended is not None)
    expected = plain("".join(pieces)) if ended is None else plain("".join(pieces))[: min(stops(ended))]
    assert "".join(released) == expected


@cache
def metaspace_codec() -> TextCodec:
    """Words are tokens that begin with their space, and the decoder leaves out the space of the first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁one", "▁two", "▁", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="s"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<tool>", special=True)])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")  # type: ignore[no-untyped-call]
    return TextCodec(fast)


def test_no_space_is_lost_after_a_special_token() -> None:
    codec = metaspace_codec()
    one, two, end = 0, 1, 4
    assert codec.special_tokens == {4: "</s>", 5: "<tool>"}
    released, _ = stream(codec, [one, end, end, two, end, two])
    assert released == ["one", "", "", " two", "", " two", ""]


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 5), max_size=20))
def test_streamed_words_equal_the_words_decoded_at_once(ids: list[int]) -> None:
    assert "".join(stream(metaspace_codec(), ids)[0]) == metaspace_codec().decode(ids)
