"""The keys of a request's blocks: chained hashes over the tokens and over all else in the request that decides their KV.

vLLM's own hashes begin with a random number unless PYTHONHASHSEED is set, so that two engines would not agree on them.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pbkv_cluster.core.tokens import pack

KEY_BYTES = 32

# (request, first token, token after the last, first multi-modal input) to (what else decides the block's KV, next input).
ExtraKeys = Callable[[Any, int, int, int], tuple[tuple[Any, ...] | None, int]]


class Request(Protocol):
    """What of vLLM's `Request` is read."""

    request_id: str
    num_computed_tokens: int
    num_prompt_tokens: int
    lora_request: Any  # None: it uses no adapter

    @property
    def num_tokens(self) -> int:
        """Of the prompt and the output so far."""
        ...

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Those."""
        ...


class RequestKeys:
    """Computed once for each block, as tokens come."""

    def __init__(self, request: Request, block_tokens: int, extra_keys: ExtraKeys, seed: bytes = b"") -> None:
        """Args:
        request: whose tokens they are; tokens are only ever added.
        block_tokens: of a block.
        extra_keys: vLLM's `generate_block_hash_extra_keys`: LoRA, multi-modal inputs, cache salt, prompt embeddings.
        seed: what else the keys depend on; keys of different seeds never meet.
        """
        self._seed = seed
        self._request = request
        self._block_tokens = block_tokens
        self._extra_keys = extra_keys
        self._keys: list[bytes] = []
        self._next_input = 0  # multi-modal

    def first(self, blocks: int) -> Sequence[bytes]:
        """The keys of the first `blocks` blocks, all of them full."""
        missing = blocks - len(self._keys)
        if missing > 0:
            self._extend(blocks)
        return self._keys[:blocks] if missing < 0 else self._keys

    def _extend(self, blocks: int) -> None:
        start = len(self._keys) * self._block_tokens
        tokens = pack(self._request.all_token_ids[start : blocks * self._block_tokens])
        size = len(tokens) // (blocks - len(self._keys))
        key = self._keys[-1] if self._keys else self._seed
        for number in range(len(self._keys), blocks):
            first = number * self._block_tokens
            extra, self._next_input = self._extra_keys(self._request, first, first + self._block_tokens, self._next_input)
            part = tokens[first * 4 - start * 4 :][:size]
            hasher = hashlib.blake2b(key, digest_size=KEY_BYTES)
            hasher.update(part)
            if extra is not None:
                hasher.update(repr(extra).encode())
            key = hasher.digest()
            self._keys.append(key)
