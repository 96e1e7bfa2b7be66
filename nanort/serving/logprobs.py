"""Log-probabilities of drawn tokens and of the likeliest ones beside them, computed where the logits are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nanort.serving.batching import Batch
from nanort.serving.requests import TokenLogprobs


def likeliest(batch: Batch, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For the shares that ask for it: each token's log-probability, and the likeliest tokens with theirs."""
    rows = _asked(batch)
    if not rows:
        return {}
    most = max(batch.shares[row].request.params.logprobs or 0 for row in rows)
    # Row by row: a list as an index would be copied to the device, and the host would wait for the step's end.
    logprobs = torch.stack([outputs["logits"][row] for row in rows]).float().log_softmax(dim=-1)
    drawn = torch.stack([outputs["tokens"][row] for row in rows])
    top, tokens = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    return {
        "logprobs": logprobs.gather(1, drawn.unsqueeze(1)).squeeze(1),
        "top_logprobs": top,
        "top_tokens": tokens,
    }


def told(
    batch: Batch, tokens: Sequence[int | None], fetched: Mapping[str, torch.Tensor]
) -> tuple[TokenLogprobs | None, ...]:
    """What :func:`likeliest` found, for each share of the batch."""
    found: list[TokenLogprobs | None] = [None] * len(tokens)
    names = ("logprobs", "top_logprobs", "top_tokens")
    if rows := _asked(batch):
        for row, logprob, top, ids in zip(rows, *(fetched[name].tolist() for name in names), strict=True):
            token, most = tokens[row], batch.shares[row].request.params.logprobs
            assert token is not None  # only shares that draw are asked
            found[row] = TokenLogprobs(token, logprob, tuple(zip(ids, top, strict=True))[:most])
    return tuple(found)


def _asked(batch: Batch) -> list[int]:
    """The shares that draw a token and ask for log-probabilities."""
    drawing = enumerate(zip(batch.shares, batch.draws, strict=True))
    return [row for row, (share, draws) in drawing if draws and share.request.params.logprobs is not None]
