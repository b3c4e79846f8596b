"""When a waiting sequence should wait for a prefix that a running one is about to compute, instead of computing it again.

Several steps of a workflow often start at once and share most of their prompts. Blocks can be matched as soon as they are
committed, so whoever is admitted before that computes them a second time.
"""

from collections.abc import Callable, Iterable

from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, common_blocks
from pbkv_cluster.gpu_worker.engine.sequence import PrefixWait, Sequence


def find_wait(
    waiting: Sequence,
    running: Iterable[Sequence],
    cached_tokens: Callable[[Sequence], int],
    chunk_tokens: int,
    compute_seconds: Callable[[int], float],
    now: float,
) -> PrefixWait | None:
    """The wait that saves most; None if it is faster to start at once.

    Args:
        waiting: the sequence.
        running: those that may compute a prefix of it.
        cached_tokens: tokens of a sequence that the cache holds now.
        chunk_tokens: most tokens of one sequence in a batch.
        compute_seconds: how long the prefill of a number of tokens takes.
        now: on the engine's clock.
    """
    best: PrefixWait | None = None
    cached: int | None = None
    for source in running:
        if not source.is_prefilling:
            continue
        shared = _shared_tokens(waiting, source)
        if shared <= max(source.computed, best.tokens if best else 0):
            continue
        if cached is None:
            cached = cached_tokens(waiting)
        saved = shared - cached
        if saved > 0 and saved > _delay_tokens(waiting, source, shared, cached, chunk_tokens):
            best = PrefixWait(source, shared, now + compute_seconds(saved))
    return best


def _shared_tokens(waiting: Sequence, source: Sequence) -> int:
    """Tokens of the whole blocks that both have, and of which `waiting` could use the KV."""
    if waiting.namespace != source.namespace:
        return 0
    if waiting.tokens[:BLOCK_BYTES] != source.tokens[:BLOCK_BYTES]:
        return 0
    usable = (waiting.total - 1) // BLOCK_TOKENS  # the last token is always computed, to predict the next
    if not usable or source.total < BLOCK_TOKENS:
        return 0
    return common_blocks(bytes(waiting.tokens), bytes(source.tokens), 0, usable * BLOCK_BYTES) * BLOCK_TOKENS


def _delay_tokens(waiting: Sequence, source: Sequence, shared: int, cached: int, chunk_tokens: int) -> int:
    """Tokens of `source` that go through the model before `waiting` is prefilled, in addition to those that would if it started
    at once. Both get one chunk in each batch.
    """
    left = source.total - source.computed
    until_shared = -(-(shared - source.computed) // chunk_tokens)
    after = -(-(waiting.total - shared) // chunk_tokens)
    at_once = -(-(waiting.total - cached) // chunk_tokens)
    return min(left, (until_shared + after) * chunk_tokens) - min(left, at_once * chunk_tokens)
