"""Path-compressed tries over blocks of packed tokens: how to walk down one, and how to cut a node in two.

A walk compares bytes: one `startswith` a node, and a bisection on slices where two sequences part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from pbkv_cluster.core.tokens import BLOCK_BYTES, common_blocks


class TrieNode(Protocol):
    """A run of blocks that belong together, and what follows it."""

    tokens: bytes
    blocks: int
    parent: Self | None
    children: dict[bytes, Self]  # by the tokens of their first block


NodeT = TypeVar("NodeT", bound=TrieNode)


class Walk(NamedTuple, Generic[NodeT]):
    """The longest known prefix of a sequence."""

    path: list[NodeT]  # in order; the last may match in part
    last_blocks: int  # blocks of the last node that match
    blocks: int  # blocks in all


def walk(children: Mapping[bytes, NodeT], tokens: bytes, end: int) -> Walk[NodeT]:
    """Goes along `tokens[:end]`, which are full blocks, as far as the trie knows them. Changes nothing.

    Args:
        children: of the node to start from.
        tokens: to be found.
        end: bytes.
    """
    path: list[NodeT] = []
    at, matched = 0, 0
    while at < end:
        child = children.get(tokens[at : at + BLOCK_BYTES])
        if child is None:
            break
        path.append(child)
        if len(child.tokens) <= end - at and tokens.startswith(child.tokens, at):
            matched = child.blocks
            at += len(child.tokens)
            children = child.children
            continue
        matched = common_blocks(child.tokens, tokens, at, end)
        at += matched * BLOCK_BYTES
        break
    return Walk(path, matched, at // BLOCK_BYTES)


def cut(lower: NodeT, upper: NodeT, siblings: dict[bytes, NodeT]) -> None:
    """Puts a new node above another, in its place. The lower one stays the same object and keeps what follows it.

    Args:
        lower: the node that is cut.
        upper: has the tokens of its first blocks, at least one and not all, and its parent.
        siblings: the children of that parent.
    """
    siblings[upper.tokens[:BLOCK_BYTES]] = upper
    lower.tokens = lower.tokens[len(upper.tokens) :]
    lower.blocks -= upper.blocks
    lower.parent = upper
    upper.children[lower.tokens[:BLOCK_BYTES]] = lower
