from __future__ import annotations

import pytest
import torch

from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import find_smollm2, load_weights, open_checkpoint
from nanort.graphs import DecoderConfig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", help="many times as many random cases, for hours instead of minutes"
    )


@pytest.fixture(scope="module")
def smollm2() -> tuple[DecoderConfig, dict[str, torch.Tensor], Tokenizer]:
    """The config, weights and tokenizer of a real model, for tests that are skipped where it is not installed."""
    path = find_smollm2()
    assert path is not None
    with open_checkpoint(path) as checkpoint:
        config = DecoderConfig.from_hf(checkpoint.config)
        return config, load_weights(checkpoint, config, torch.float32), Tokenizer.of(path)
