from __future__ import annotations

import pytest
import torch

from nanort import ops
from nanort.ops.examples import normal


def rows_of(logits: torch.Tensor, uniform: torch.Tensor, t: float, k: int = 0, p: float = 1.0) -> torch.Tensor:
    """Tokens of one row of logits at many draws, with the same parameters."""
    n = len(uniform)
    return ops.sample(logits.expand(n, -1), uniform, torch.full((n,), t), torch.full((n,), k), torch.full((n,), p))


def frequencies(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return torch.bincount(tokens, minlength=vocabulary) / len(tokens)


EVEN = (torch.arange(4096) + 0.5) / 4096  # draws that meet every part of the distribution as often as it is likely


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sample_draws_as_often_as_likely(temperature: float) -> None:
    logits = normal(0, 11).float()
    found = frequencies(rows_of(logits, EVEN, temperature), 11)
    torch.testing.assert_close(found, (logits / temperature).softmax(0), rtol=0, atol=2 / 4096)


@pytest.mark.parametrize(("k", "p"), [(1, 1.0), (3, 1.0), (99, 1.0), (0, 0.6), (0, 1e-6), (5, 0.7)])
def test_sample_filters_as_hugging_face_does(k: int, p: float) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = normal(0, 1, 11).float()
    kept = TopKLogitsWarper(k)(None, logits) if k else logits
    kept = TopPLogitsWarper(p)(None, kept) if p < 1 else kept
    found = frequencies(rows_of(logits[0], EVEN, 1.0, k, p), 11)
    torch.testing.assert_close(found, kept[0].softmax(0), rtol=0, atol=2 / 4096)


def test_sample_at_temperature_zero_is_argmax_whatever_the_rest_says() -> None:
    logits = normal(0, 20, 9).float()
    logits[:, 4] = logits[:, 7] = 10.0  # of equals, the first
    half = torch.full((20,), 0.5)
    tokens = ops.sample(logits, half, torch.zeros(20), torch.full((20,), 3), half)
    assert torch.equal(tokens, ops.argmax(logits))
    assert torch.equal(tokens, torch.full((20,), 4))


def test_sample_takes_equals_in_their_order() -> None:
    assert torch.equal(rows_of(torch.zeros(64), torch.arange(64) / 64, 1.0), torch.arange(64))


def test_sample_never_takes_what_is_impossible() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])
    ends = torch.tensor([0.0, 1.0])
    assert rows_of(logits, ends, 1.0).tolist() == [1, 3]
    assert rows_of(logits, ends, 1.0, k=1).tolist() == [1, 1]
