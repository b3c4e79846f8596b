"""Output text as it comes: tokens to characters, and stop strings."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "�"  # what a tokenizer gives for the first bytes of a character


class TextStream:
    """Turns one sequence's tokens to text, holding back what could still become a stop string or part of a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        """Args:
        decode: text of token ids, without special ones.
        stop: the text ends before the first of these.
        """
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        # Decoding starts a little before what is new, since how a token reads can depend on those before it.
        self._context = 0  # first token that decoding starts from
        self._read = 0  # tokens whose text has been taken
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes a token; returns the text that is now certain. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._release(self._new_text(final=False))

    def finish(self) -> str:
        """No token follows: returns what was held back."""
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
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
