"""A host pool as SGLang has them, in each of its layouts."""

from types import SimpleNamespace

import torch

from tests.integrations.engine_store.engines import BLOCK

LAYERS, PAGE, HEADS, DIM = 2, 32, 2, 64
DTYPE = torch.bfloat16
PAGE_BYTES = 2 * LAYERS * PAGE * HEADS * DIM * DTYPE.itemsize


class Pool:
    """Keys and values of some pages, in memory of its own."""

    page_size = PAGE
    dtype = DTYPE

    def __init__(self, pages: int, layout: str = "page_first", device_dtype: torch.dtype = DTYPE) -> None:
        self.layout = layout
        self.device_pool = SimpleNamespace(dtype=device_dtype, store_dtype=DTYPE)
        shape = (2, LAYERS, pages * PAGE, HEADS, DIM) if layout == "layer_first" else (2, pages * PAGE, LAYERS, HEADS, DIM)
        self.kv_buffer = torch.zeros(shape, dtype=DTYPE)

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        tokens = slice(index, index + PAGE)
        page = self.kv_buffer[:, :, tokens] if self.layout == "layer_first" else self.kv_buffer[:, tokens]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(PAGE_BYTES // DTYPE.itemsize, dtype=DTYPE)

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        page = self.get_data_page(index, flat=False)
        page.copy_(data_page.reshape(page.shape))

    def fill(self, page: int, number: int) -> torch.Tensor:
        """Gives a page contents of its own, which are returned."""
        values = torch.arange(PAGE_BYTES // DTYPE.itemsize).to(DTYPE) + number
        self.set_from_flat_data_page(page * PAGE, values)
        return values


def indices(*pages: int) -> torch.Tensor:
    """Of all tokens of some pages."""
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


assert PAGE_BYTES == BLOCK // 2
