"""One pass of a model over a batch whose KV is in our pool. The runner and the self-test of a model both use it."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pbkv_cluster.gpu_worker.attention import PagedBatch
from pbkv_cluster.gpu_worker.model.rotary import RotarySwitch


def forward(
    module: Any,
    paged: PagedBatch,
    ids: npt.NDArray[Any],
    positions: npt.NDArray[Any],
    lengths: npt.NDArray[Any],
    rows: Sequence[int],
    device: torch.device,
    rotary: RotarySwitch | None,
) -> torch.Tensor:
    """Runs the tokens of a batch, span after span, and returns the logits after some of them.

    Args:
        module: a causal language model of `transformers` that calls paged attention.
        paged: attention over the batch's sequences.
        ids: of the tokens.
        positions: of the tokens in their sequences.
        lengths: of the tokens' sequences, with what is still to be computed of their prompts.
        rows: indices of the tokens after which logits are wanted; at least one, since a model's head needs that.
        device: of the model.
        rotary: of the model, if its rotary factors switch.

    Returns:
        [rows, vocabulary]
    """
    with rotary.chosen(lengths > rotary.tokens) if rotary else nullcontext():
        output = module(
            input_ids=torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(device),
            position_ids=torch.from_numpy(positions.astype(np.int64)).unsqueeze(0).to(device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, device=device),
            paged=paged,
        )
    logits: torch.Tensor = output.logits[0]
    return logits if len(logits) == len(rows) else logits[list(rows)]  # a few models compute all
