"""One workflow's steps, told to the workers that run others of them: so each worker's record is of the whole workflow.

A `StepHistory` is told of each step as it begins and ends, and says what a worker has not heard yet. A prompt travels as what
it adds to an earlier step's path, in packed tokens: less than was sent to the worker that runs the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pbkv_cluster.core.token_trie import cut, walk
from pbkv_cluster.core.tokens import BLOCK_BYTES, TOKEN_BYTES, count

_EVENT_BYTES = 512  # of an event besides its tokens, about
_PATH_BYTES = 512  # of a node of the trie besides its tokens, about


@dataclass(frozen=True, slots=True)
class RemoteStepBegan:
    """A step has begun on another worker. Its prompt is the first `follows` blocks of an earlier step's path, and `tokens`."""

    index: int  # among all that is told of the workflow, ever higher
    number: int  # as the gateway counts the steps of the workflow
    agent: str
    parent: int | None  # number of the step that it follows; None: it is the first
    tenant: str
    came_from: int  # number of a step that has begun before; -1: the prompt is `tokens`
    follows: int  # blocks
    tokens: bytes  # packed, full blocks
    at: float  # seconds, on the clock of who tells it
    length: int  # tokens of its sequence; beyond the rotary switch its blocks are others


@dataclass(frozen=True, slots=True)
class RemoteStepEnded:
    """A step has ended on another worker, finished or not."""

    index: int
    number: int
    tenant: str
    output: bytes  # packed, the full blocks after those of its prompt
    at: float
    length: int


RemoteStepEvent = RemoteStepBegan | RemoteStepEnded


class _Path:
    """A node of the trie of all paths, see `core/token_trie.py`."""

    __slots__ = ("blocks", "children", "number", "parent", "tokens")

    def __init__(self, parent: _Path | None, tokens: bytes, number: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, _Path] = {}
        self.number = number  # of the step whose path had these blocks first


@dataclass(slots=True)
class _Told:
    """One event, and the worker that knows it best."""

    worker: str
    event: RemoteStepEvent

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, and at least what it takes in a message."""
        tokens = self.event.output if isinstance(self.event, RemoteStepEnded) else self.event.tokens
        return len(tokens) + _EVENT_BYTES


@dataclass(slots=True)
class _Running:
    """A step that has begun and not ended."""

    worker: str
    tenant: str
    prompt: bytes  # packed; the step in flight has the same object


@dataclass(slots=True)
class StepHistory:
    """The steps of one workflow so far, and how far each of its workers has heard of them."""

    first_index: int = 0  # above all that was told of the workflow before, by a gateway that has restarted
    size_bytes: int = 0  # of events and paths
    _events: list[_Told] = field(default_factory=list)
    _heard: dict[str, int] = field(default_factory=dict)  # by worker: index of the latest event that it was told
    _skipped: dict[str, int] = field(default_factory=dict)  # by worker: events that need not be looked at for what it is told
    _workers: dict[str, None] = field(default_factory=dict)  # that have run steps
    _running: dict[int, _Running] = field(default_factory=dict)  # by number
    _paths: dict[bytes, _Path] = field(default_factory=dict)  # roots of the trie

    def began(
        self,
        number: int,
        agent: str,
        prompt: bytes,
        worker: str,
        at: float,
        *,
        parent: int | None = None,
        tenant: str = "",
        sent: bytes = b"",
    ) -> None:
        """A step has begun, or goes on, on a worker.

        Args:
            number: as the gateway counts.
            agent: that calls.
            prompt: packed.
            worker: its id.
            at: seconds.
            parent: number of the step that it follows.
            tenant: whose blocks these are.
            sent: packed output of a worker that was lost, after which this one goes on.
        """
        self._workers[worker] = None
        full = prompt[: len(prompt) // BLOCK_BYTES * BLOCK_BYTES]
        source, blocks = self._add(full, number)
        index = self.first_index + len(self._events)
        rest = full[blocks * BLOCK_BYTES :]
        length = count(prompt) + count(sent)
        self._note(worker, RemoteStepBegan(index, number, agent, parent, tenant, source, blocks, rest, at, length))
        self._running[number] = _Running(worker, tenant, prompt)

    def ended(self, number: int, output: bytes, at: float) -> None:
        """A step has ended, or left its worker. Without effect if it does not run.

        Args:
            number: of the step.
            output: packed, as far as it is known. The KV of its last token was never computed.
            at: seconds.
        """
        step = self._running.pop(number, None)
        if step is None:
            return
        full = len(step.prompt) // BLOCK_BYTES * BLOCK_BYTES
        tail = step.prompt[full:] + output[:-TOKEN_BYTES]
        tail = tail[: len(tail) // BLOCK_BYTES * BLOCK_BYTES]
        self._add(step.prompt[:full] + tail, number)
        index = self.first_index + len(self._events)
        length = count(step.prompt) + count(output[:-TOKEN_BYTES])
        self._note(step.worker, RemoteStepEnded(index, number, step.tenant, tail, at, length))

    @property
    def workers(self) -> list[str]:
        """The workers that have run steps of it, or run one."""
        return list(self._workers)

    @property
    def running(self) -> bool:
        """Whether a step runs."""
        return bool(self._running)

    def untold(self, worker: str, limit_bytes: float = math.inf) -> list[RemoteStepEvent]:
        """What a worker has not been told, in order: the oldest, as many as fit in a message, and one at least.

        Args:
            worker: its id.
            limit_bytes: of the message.
        """
        heard = self._heard.get(worker, self.first_index - 1) + 1 - self.first_index
        first = max(heard, self._skipped.get(worker, 0))
        while first < len(self._events) and self._events[first].worker == worker:
            first += 1
        self._skipped[worker] = first
        events, size_bytes = list[RemoteStepEvent](), 0
        for each in itertools.islice(self._events, first, None):
            if each.worker == worker:
                continue
            size_bytes += each.size_bytes
            if events and size_bytes > limit_bytes:
                break
            events.append(each.event)
        return events

    def heard(self, worker: str) -> int:
        """Index of the latest event that a worker was told; -1: none."""
        return self._heard.get(worker, -1)

    def told(self, worker: str, events: Sequence[RemoteStepEvent]) -> None:
        """A worker was told these events."""
        if events:
            self._heard[worker] = max(self._heard.get(worker, -1), events[-1].index)

    def forget(self, worker: str) -> None:
        """What a worker was told may not have arrived: it will be told everything."""
        self._heard.pop(worker, None)
        self._skipped.pop(worker, None)

    def _note(self, worker: str, event: RemoteStepEvent) -> None:
        told = _Told(worker, event)
        self._events.append(told)
        self.size_bytes += told.size_bytes

    def _add(self, path: bytes, number: int) -> tuple[int, int]:
        """Adds a path of full blocks. Returns a step whose path it follows, and for how many blocks; -1 and 0: none."""
        nodes, last_blocks, blocks = walk(self._paths, path, len(path))
        end = nodes[-1] if nodes else None
        source = -1 if end is None else end.number
        if end is not None and last_blocks < end.blocks and blocks * BLOCK_BYTES < len(path):
            siblings = self._paths if end.parent is None else end.parent.children
            upper = _Path(end.parent, end.tokens[: last_blocks * BLOCK_BYTES], end.number)
            cut(end, upper, siblings)
            self.size_bytes += _PATH_BYTES
            end = upper
        rest = path[blocks * BLOCK_BYTES :]
        if rest:
            children = self._paths if end is None else end.children
            children[rest[:BLOCK_BYTES]] = _Path(end, rest, number)
            self.size_bytes += len(rest) + _PATH_BYTES
        return source, blocks


def whole(source: Iterator[bytes] | None, event: RemoteStepBegan) -> bytes | None:
    """The prompt of a step, in full blocks; None: the path that it follows is not known, or too short.

    Args:
        source: tokens of the path of step `came_from`, in parts.
        event: what was told of the step.
    """
    if event.came_from < 0:
        return event.tokens
    known = b"" if source is None else b"".join(source)
    stop = event.follows * BLOCK_BYTES
    return known[:stop] + event.tokens if len(known) >= stop else None
