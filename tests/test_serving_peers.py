from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

import nanort as nr
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.graphs import CONFIGS, random_weights
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams
from tree import ROOT

pytest.importorskip("transformers")

PROMPTS = [[1, 2, 3], [4] * 40, [5, 6], [7, 8, 9, 10], [11] * 5, [12], [13, 14] * 9, [15] * 17, [16, 17], [18] * 3]
REPLIES = [5, 2, 9, 1, 4, 7, 3, 6, 2, 8]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed
    return importlib.import_module("benchmarks.serving_peers")


def test_peers_answer_the_same_requests_to_the_same_lengths(peers: ModuleType) -> None:
    config = CONFIGS["tiny"]
    weights = random_weights(config, torch.float32)
    params = [SamplingParams(max_new_tokens=reply, ignore_eos=True) for reply in REPLIES]
    core = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
    with LLM(config, weights, ByteTokenizer(), device=core) as llm:
        ours = [list(one.tokens) for one in llm.generate(PROMPTS, params)]
    model = peers.model_of(config, weights)
    order = sorted(range(len(PROMPTS)), key=lambda number: len(PROMPTS[number]))
    assert peers.in_static_batches(model, PROMPTS, REPLIES, order) == ours
    assert peers.in_continuous_batches(model, PROMPTS, REPLIES) == ours
