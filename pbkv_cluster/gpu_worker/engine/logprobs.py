"""How likely a batch's next tokens are, for the sequences whose clients ask for that."""

from collections.abc import Sequence

import torch

from pbkv_cluster.core.workflow.logprobs import TokenLogprobs


def next_logprobs(logits: torch.Tensor, tokens: Sequence[int], wanted: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """Of the tokens that were chosen, and of the likeliest in their places.

    Args:
        logits: [rows, vocabulary], any float type, any device.
        tokens: that were chosen, of each row.
        wanted: how many of the likeliest, of each row; None: nothing is asked for.
    """
    found: list[TokenLogprobs | None] = [None] * len(tokens)
    for row, (token, most) in enumerate(zip(tokens, wanted, strict=True)):
        if most is not None:
            scores = torch.log_softmax(logits[row].float(), dim=-1)
            values, ids = scores.topk(min(most, len(scores)))
            found[row] = TokenLogprobs(float(scores[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
    return found
