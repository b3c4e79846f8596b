"""Streams output text: turns tokens into characters and finds stop strings."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

_INCOMPLETE = "�"  # what a tokenizer returns for part of a character's bytes
# Special tokens are not part of the text, but a stop string may name them. There, and in the text that is searched, each is one
# character of this range, none of which is ever part of a text: they are halves of UTF-16 pairs.
_FIRST_MARK = 0xD800
_NO_TOKENS: Mapping[int, str] = MappingProxyType({})


class TextStream:
    """Turns one sequence's tokens into text. Text that may be the beginning of a stop string or of a character is held back."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], special_tokens: Mapping[int, str] = _NO_TOKENS
    ) -> None:
        """Args:
        decode: returns the text of token ids, without special tokens.
        stop: strings; the text ends before the first that occurs. They may contain special tokens.
        special_tokens: what stop strings write for tokens that `decode` leaves out.
        """
        self._decode = decode
        self._special_tokens = special_tokens
        self._stop = stop
        self._marks = _marks(stop, special_tokens)  # of special tokens that stop strings contain
        self._marked_stop = _marked(stop, special_tokens, self._marks)
        # NOTE: without special tokens, so that decoding never starts with one. Some decoders leave out the space before the
        # first word that they see.
        self._ids: list[int] = []
        # Decoding starts a few tokens before the new one, since the text of a token can depend on those before it.
        self._context = 0  # index of the token where decoding starts
        self._read = 0  # tokens whose text has been returned or is held back
        self._held = ""  # with marks
        self.stopped = False

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is now certain. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        if token in self._special_tokens:
            return self._release(self._marks.get(token, ""))
        self._ids.append(token)
        return self._release(self._new_text(final=False))

    def finish(self) -> str:
        """Ends the stream and returns the text that was held back."""
        if self.stopped:
            return ""
        text = self._release(self._new_text(final=True))
        text, self._held = text + self._visible(self._held), ""
        return text

    def _new_text(self, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._read])
        now = self._decode(self._ids[self._context :])
        if not final and now.endswith(_INCOMPLETE):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _release(self, new: str) -> str:
        text = self._held + new
        if not self._stop:
            return text
        visible = self._visible(text)
        found = [at for stop in self._stop if (at := visible.find(stop)) >= 0]
        found += [len(self._visible(text[:at])) for stop in self._marked_stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return visible[: min(found)]
        kept = max(_overlap(visible, stop) for stop in self._stop)
        cut = self._index(text, len(visible) - kept) if kept else len(text)
        cut = min([cut, *(len(text) - _overlap(text, stop) for stop in self._marked_stop)])
        self._held = text[cut:]
        return self._visible(text[:cut])

    def _index(self, text: str, visible: int) -> int:
        """Index in `text` of a character that has this index among the visible ones."""
        marks = set(self._marks.values())
        return [at for at, character in enumerate(text) if character not in marks][visible] if marks else visible

    def _visible(self, text: str) -> str:
        for mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _marks(stop: Sequence[str], special_tokens: Mapping[int, str]) -> dict[int, str]:
    if not stop:
        return {}
    contained = {written for written in special_tokens.values() if any(written in each for each in stop)}
    mark = {written: chr(_FIRST_MARK + number) for number, written in enumerate(sorted(contained))}
    return {token: mark[written] for token, written in special_tokens.items() if written in contained}


def _marked(stop: Sequence[str], special_tokens: Mapping[int, str], marks: Mapping[int, str]) -> list[str]:
    """The stop strings that contain special tokens, with marks in their places."""
    if not marks:
        return []
    by_text = {special_tokens[token]: mark for token, mark in marks.items()}
    longest_first = sorted(by_text, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return [marked for each in stop if (marked := pattern.sub(lambda found: by_text[found.group()], each)) != each]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
