"""The steps that this gateway has on one worker: how many tokens they have to process, and which prefixes they compute."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from pbkv_cluster.core.tokens import BLOCK_TOKENS

# Steps with the same first block that are compared with a prompt, the latest first. A bound on the time of a placement.
_COMPARED = 32


class StepLoad(NamedTuple):
    """What a step asks of the worker that it is placed on."""

    keys: Sequence[bytes]  # of the prompt's full blocks
    tokens: int  # expected: those of the prompt that are not cached there, and those of the output

    @classmethod
    def expected(cls, keys: Sequence[bytes], prompt_tokens: int, cached_tokens: int, output_tokens: int) -> Self:
        """The load of a step on a worker that has some of its prompt. At least one token of the prompt is always computed."""
        return cls(keys, max(prompt_tokens - cached_tokens, 1) + output_tokens)


class WorkerLoad:
    """Steps in flight on one worker."""

    def __init__(self) -> None:
        self._steps: dict[object, StepLoad] = {}
        self._by_first_block: dict[bytes, dict[object, Sequence[bytes]]] = {}
        self._tokens = 0

    def __len__(self) -> int:
        """Steps in flight."""
        return len(self._steps)

    def __iter__(self) -> Iterator[object]:
        return iter(self._steps)

    @property
    def tokens(self) -> int:
        """Tokens that the steps in flight were expected to compute and generate when they were placed."""
        return self._tokens

    def add(self, step: object, load: StepLoad) -> None:
        """A step was placed on the worker."""
        self.discard(step)
        self._steps[step] = load
        self._tokens += load.tokens
        if load.keys:
            self._by_first_block.setdefault(load.keys[0], {})[step] = load.keys

    def discard(self, step: object) -> None:
        """A step has left the worker. Harmless when repeated."""
        load = self._steps.pop(step, None)
        if load is None:
            return
        self._tokens -= load.tokens
        if load.keys:
            sharing = self._by_first_block[load.keys[0]]
            del sharing[step]
            if not sharing:
                del self._by_first_block[load.keys[0]]

    def pending_tokens(self, keys: Sequence[bytes]) -> int:
        """Tokens of the longest prefix of a prompt that a step in flight has, too, whether it has computed them or not.

        Args:
            keys: of the prompt's full blocks.
        """
        if not keys:
            return 0
        sharing = self._by_first_block.get(keys[0], {})
        latest = [others for others, _ in zip(reversed(sharing.values()), range(_COMPARED), strict=False)]
        return max((_common(keys, others) for others in latest), default=0) * BLOCK_TOKENS


def _common(keys: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Blocks that two prompts with the same first block share, by bisection: a key covers all blocks before its own."""
    low, high = 1, min(len(keys), len(others)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if keys[middle - 1] == others[middle - 1]:
            low = middle
        else:
            high = middle
    return low
