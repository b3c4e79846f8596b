"""Pages of one of SGLang's host pools as blocks of the store. A page is copied once, between the pool and the arena."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from pbkv_cluster.integrations.engine_store import EngineStore
from pbkv_cluster.store.arena.slots import Bytes


class HostPool(Protocol):
    """What is used of SGLang's `HostKVCache`. A page is named by the index of its first token."""

    page_size: int  # tokens

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        """The page; unless `flat`, without a copy where the pool's layout allows that."""

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        """A page of zeros."""

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        """Copies a page into the pool."""


def key_of(name: str) -> bytes:
    """The store's key of a page: SGLang's are hexadecimal hashes, some with the name of a pool after them."""
    return hashlib.blake2b(name.encode(), digest_size=32).digest()


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous tensor on the CPU."""
    found: Bytes = tensor.view(-1).view(torch.uint8).numpy()
    return found


def data_types(pool: HostPool) -> str:
    """All data types that a pool and the device's pool behind it name, as text.

    The page's own does not do: SGLang keeps KV of every kind of 8 bits as uint8.
    """
    owners = {"host": pool, "device": getattr(pool, "device_pool", None)}
    return " ".join(
        f"{place}.{name}={value}"
        for place, owner in owners.items()
        for name, value in sorted(getattr(owner, "__dict__", {}).items())
        if isinstance(value, torch.dtype)
    )


class Pages:
    """Reads and writes pages of one pool."""

    def __init__(self, pool: HostPool, store: EngineStore) -> None:
        """Args:
        pool: SGLang's.
        store: whose blocks are as long as the pool's pages.
        """
        self._pool = pool
        self._store = store
        self._dtype = pool.get_dummy_flat_data_page().dtype

    def leading(self, names: Sequence[str]) -> int:
        """How many of the first pages the store has."""
        return self._store.leading([key_of(name) for name in names])

    def held(self, names: Sequence[str]) -> list[bool]:
        """Which pages the store has."""
        return [self._store.has(key_of(name)) for name in names]

    def read(self, names: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        """Copies pages from the store to the pool. Waits for it, and returns which have been copied.

        Args:
            names: of the pages.
            host_indices: of all tokens of the pages, in order.
        """
        indices = self._first_indices(names, host_indices)
        if indices is None:
            return [False] * len(names)

        def deliver(number: int, payload: Bytes) -> None:
            # The copy is made by the pool. It does not write to the page that it is given, so a read-only one would do.
            page = torch.from_numpy(np.asarray(payload)).view(self._dtype)
            self._pool.set_from_flat_data_page(indices[number], page)

        return self._store.load([key_of(name) for name in names], deliver).result()

    def write(self, names: Sequence[str], host_indices: torch.Tensor, parent: str | None) -> list[bool]:
        """Copies pages from the pool to the store. Waits for it, and returns which the store has then.

        Args:
            names: of consecutive pages.
            host_indices: of all tokens of the pages, in order.
            parent: name of the page before them; None: not known, or they are the first.
        """
        indices = self._first_indices(names, host_indices)
        if indices is None:
            return [False] * len(names)
        keys = [key_of(name) for name in names]
        writes = self._store.begin(keys, None if parent is None else key_of(parent))
        begun = [write for write in writes if write is not None]
        try:
            for write, index in zip(writes, indices, strict=True):
                if write is not None:
                    page = self._pool.get_data_page(index, flat=False)
                    torch.from_numpy(write.payload).view(page.dtype).view(page.shape).copy_(page)
        except BaseException:
            self._store.abandon(begun)
            raise
        self._store.commit(begun).result()
        return [self._store.has(key) for key in keys]

    def get(self, names: Sequence[str], targets: Sequence[torch.Tensor]) -> list[bool]:
        """Copies pages from the store to tensors, contiguous and on the CPU. Waits for it."""
        return self._store.get([key_of(name) for name in names], [bytes_of(target) for target in targets]).result()

    def put(self, names: Sequence[str], values: Sequence[torch.Tensor]) -> list[bool]:
        """Copies pages from tensors to the store. Waits for it."""
        return self._store.put([key_of(name) for name in names], [bytes_of(value.contiguous()) for value in values]).result()

    def _first_indices(self, names: Sequence[str], host_indices: torch.Tensor) -> list[int] | None:
        size = self._pool.page_size
        if host_indices.numel() != len(names) * size:
            return None
        first: list[int] = host_indices[::size].tolist()
        return first
