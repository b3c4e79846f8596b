"""Streams output text: turns tokens into characters and finds stop strings."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "�"  # what a tokenizer returns for part of a character's bytes


class TextStream:
    """Turns one sequence's tokens into text. Text that may be the beginning of a stop string or of a character is held back."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        """Args:
        decode: returns the text of token ids, without special tokens.
        stop: strings; the text ends before the first that occurs.
        """
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        # Decoding starts a few tokens before the new one, since the text of a token can depend on those before it.
        self._context = 0  # index of the token where decoding starts
        self._read = 0  # tokens whose text has been returned or is held back
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is now certain. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._release(self._new_text(final=False))

    def finish(self) -> str:
        """Ends the stream and returns the text that was held back."""
        if self.stopped:
            return ""
        text = self._release(self._new_text(final=True))
        text, self._held = text + self._held, ""
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
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
