"""The KV of one block across all layers, as bytes and back, on any device."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pbkv_cluster.integrations.vllm.options import Refused
from pbkv_cluster.store.arena.slots import Bytes


class BlockLayout:
    """Where the parts of each block lie in the layers' tensors. A block's bytes are those parts, one after the other."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], blocks: int) -> None:
        """Args:
        kv_caches: vLLM's, by layer.
        blocks: in its pool.

        Raises:
            Refused: in some tensor, blocks are not to be found.
        """
        found = [part for name in sorted(kv_caches) for part in _by_block(name, kv_caches[name], blocks)]
        parts = list({part.data_ptr(): part for part in found}.values())  # some layers share the KV of others
        self.device = parts[0].device
        # As bytes, but in the tensors' own memory.
        self._parts = [part.view(torch.uint8) for part in parts]
        self._sizes = [part[0].numel() for part in self._parts]
        self.block_bytes = sum(self._sizes)
        shapes = {f"{tuple(part.shape[1:])} {part.dtype} by {_order(part)}" for part in parts}
        self.description = f"{len(parts)} parts, {' and '.join(sorted(shapes))}"
        self._arrays: list[npt.NDArray[np.uint8]] = []
        if self.device.type == "cpu":
            self._arrays = [part.numpy() for part in self._parts]

    def read(self, block_ids: Sequence[int], targets: Sequence[Bytes]) -> None:
        """Copies blocks out of the pool; done when this returns, whatever the device.

        Args:
            block_ids: of the blocks.
            targets: where each one's bytes go.
        """
        if self._arrays:
            for block_id, target in zip(block_ids, targets, strict=True):
                start = 0
                for array, size in zip(self._arrays, self._sizes, strict=True):
                    part = array[block_id]
                    target[start : start + size].reshape(part.shape)[...] = part
                    start += size
            return
        ids = torch.tensor(block_ids, device=self.device)
        # One gather a layer and one copy from the device for all of them.
        gathered = torch.cat([part.index_select(0, ids).flatten(1) for part in self._parts], dim=1).cpu().numpy()
        for target, row in zip(targets, gathered, strict=True):
            target[:] = row

    def write(self, block_id: int, payload: Bytes) -> None:
        """Copies a block's bytes into the pool; done when this returns."""
        start = 0
        if self._arrays:
            for array, size in zip(self._arrays, self._sizes, strict=True):
                part = array[block_id]
                part[...] = payload[start : start + size].reshape(part.shape)
                start += size
            return
        row = torch.from_numpy(payload.copy()).to(self.device)
        for whole, size in zip(self._parts, self._sizes, strict=True):
            whole[block_id].copy_(row[start : start + size].view(whole.shape[1:]))
            start += size
        torch.accelerator.current_stream(self.device).synchronize()


def _by_block(name: str, tensor: object, blocks: int) -> list[torch.Tensor]:
    """A layer's KV as tensors whose first index is the block."""
    if not isinstance(tensor, torch.Tensor):
        raise Refused(f"the KV cache of layer {name} is no tensor but {type(tensor).__name__}")
    if tensor.shape[0] == blocks:
        parts = [tensor]
    elif tensor.shape[0] % blocks == 0:  # the kernels' blocks are smaller than vLLM's
        parts = [tensor.view(blocks, tensor.shape[0] // blocks, *tensor.shape[1:])]
    elif tensor.shape[0] == 2 and tensor.shape[1] % blocks == 0:  # keys, values
        parts = [part for half in tensor for part in _by_block(name, half, blocks)]
    else:
        raise Refused(
            f"the KV cache of layer {name} has shape {tuple(tensor.shape)}, in which {blocks} blocks are not to be found"
        )
    if any(part.stride(-1) != 1 for part in parts):
        raise Refused(f"the KV cache of layer {name} has strides {tensor.stride()}; the last must be 1")
    return parts


def _order(part: torch.Tensor) -> str:
    """The order of the dimensions in memory; the distance of blocks differs with the pool's size and does not matter."""
    strides = part.stride()[1:]
    return "".join(map(str, sorted(range(len(strides)), key=lambda each: -strides[each])))
