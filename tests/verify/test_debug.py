"""debug=True accuses nothing that is sound: random programs on every backend, every architecture, every example."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import racing
import random_dags
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.runtime.executor import Executor
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams
from serving_models import MODELS, TinyModel, drawn_prompts
from test_debug import WAYS, watched
from tree import ROOT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", racing.FAMILIES)
def test_sound_programs_are_not_accused(way: str, family: random_dags.Family) -> None:
    """300 of them on each backend."""
    for seed in range(6, 81):
        watched(seed, family, way)


@pytest.mark.parametrize("name", MODELS)
def test_decoders_that_generate_are_not_accused(name: str, tmp_path: Path) -> None:
    model = TinyModel.make(name, tmp_path)
    prompts, params = drawn_prompts(5, longest=60, shared=20), SamplingParams(max_new_tokens=5, ignore_eos=True)
    options = {"cache_tokens": 512, "max_rows": 64, "seats": 4, "host_cache": 1 << 20}
    replies = []
    for debug in (False, True):
        with LLM(model.config, model.weights, ByteTokenizer(), debug=debug, **options) as llm:
            replies.append([reply.tokens for reply in llm.generate(prompts, params)])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_not_accused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every executor of theirs is watched, and they print what they always print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Executor.__init__.__kwdefaults__, "debug", True)
    runpy.run_path(str(path))["main"]()
    assert capsys.readouterr().out == path.with_suffix(".out").read_text(encoding="utf-8")
