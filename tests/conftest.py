from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; read when one of them is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # whatever a test loads stands on this machine
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is told to ignore it
torch.set_num_threads(1)  # sums differ in the last bits between one thread and two
hypothesis.settings.register_profile("nanort", deadline=None, derandomize=True)  # the same cases on every machine
hypothesis.settings.load_profile("nanort")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-examples", action="store_true", help="write what the examples print to their .out files")


@pytest.fixture(autouse=True)
def _modes() -> Iterator[None]:
    """Whoever turns gradients off turns them on again: they are off for the whole thread."""
    yield
    off = not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert not off, "gradients are off after this test"
