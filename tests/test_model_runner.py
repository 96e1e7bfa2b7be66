from __future__ import annotations

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver, TwoThreads
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.errors import ExecutionError, PoisonedError
from nanort.graphs import CONFIGS, random_weights
from nanort.runtime import kernels
from nanort.runtime.executor import Executor
from nanort.runtime.partitions import partitions
from nanort.serving.batching import Batch
from nanort.serving.ferry import Ferry, Voyage
from nanort.serving.generate import LLM
from nanort.serving.host_store import HostStore
from nanort.serving.sampling import SamplingParams

TINY = CONFIGS["tiny"]
WEIGHTS = random_weights(TINY, torch.float32, seed=1)
PROMPTS = [[7], [1, 2, 3], list(range(40)), list(range(100, 180))]
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


def tokens(prompts: list[list[int]] = PROMPTS, **options: object) -> list[tuple[int, ...]]:
    with LLM(TINY, WEIGHTS, ByteTokenizer(), **options) as llm:
        return [completion.tokens for completion in llm.generate(prompts, PARAMS)]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    return tokens()


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators run their references, since the kernels' machine is not there."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(kernels, "import_module", missing)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_gpu_says_the_same_however_late_it_carries_out_what_is_queued(
    expected: list[tuple[int, ...]], seed: int | None, monkeypatch: pytest.MonkeyPatch, references: None
) -> None:
    driver = TwoThreads(seed=seed)
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    small = {"cache_tokens": 160, "page_size": 4, "max_rows": 32, "host_cache": 1 << 22, "preempt": "swap"}
    assert tokens(device=nr.device("h200"), nano_batches=(2,), guard=False, **small) == expected
    partitions(driver).close()
    assert not any(driver.live.values()), "nothing is left on the device"


def test_a_gpu_that_fails_ends_serving_and_says_in_which_step(
    monkeypatch: pytest.MonkeyPatch, references: None
) -> None:
    driver = TwoThreads(seed=1)
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    llm = LLM(TINY, WEIGHTS, ByteTokenizer(), device=nr.device("h200"), cache_tokens=160)
    stream = llm.stream(PROMPTS[:2], PARAMS)
    next(stream)
    driver.fault()
    with pytest.raises(PoisonedError, match="the device failed"):
        list(stream)
    with pytest.raises(PoisonedError):
        llm.engine.step()
    llm.close()


def test_pages_that_could_not_be_kept_are_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(store: HostStore, batch: Batch, outputs: dict[str, torch.Tensor]) -> None:
        raise MemoryError("no room for pages")

    monkeypatch.setattr(HostStore, "keep", full)
    small = {"cache_tokens": 160, "page_size": 4, "max_rows": 32, "host_cache": 1 << 22, "preempt": "swap"}
    with pytest.raises(MemoryError, match="no room for pages"):
        tokens(PROMPTS * 3, **small)


def test_a_node_that_fails_fails_the_requests_of_its_step_and_the_next_ones_go_on(
    expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer(), prefix_sharing=False) as llm:
        assert [completion.tokens for completion in llm.generate(PROMPTS, PARAMS)] == expected
        run = llm.plans[-1].run

        def failing(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            raise ExecutionError("node layer0.q_proj (a.py:1) failed: out of luck", node="layer0.q_proj")

        with monkeypatch.context() as patch:
            patch.setattr(type(run), "__call__", lambda self, **inputs: failing(**inputs))
            with pytest.raises(ExecutionError, match=r"layer0\.q_proj"):
                llm.generate(PROMPTS, PARAMS)
        assert (llm.engine.running, llm.cache.used) == ((), 0)
        assert [completion.tokens for completion in llm.generate(PROMPTS, PARAMS)] == expected


def test_a_prediction_is_what_the_plan_says(expected: list[tuple[int, ...]]) -> None:
    with LLM(TINY, WEIGHTS, ByteTokenizer()) as llm:
        seen: list[tuple[float, float]] = []
        runner = llm.engine.runner
        llm.engine.observers.append(
            lambda record: seen.append((runner.predict(record.batch), llm.plans[-1].schedule.makespan))
        )
        llm.generate(PROMPTS[:1], PARAMS)
        assert seen
        assert all(predicted == said for predicted, said in seen[1:])


def test_an_interrupt_of_the_wait_for_a_gpu_leaves_the_step_in_flight(
    expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, references: None
) -> None:
    driver = FakeDriver()
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    device, waited, interrupts = nr.device("h200"), Ferry.wait, iter([False, False, True])

    def wait(ferry: Ferry, voyage: Voyage) -> dict[str, torch.Tensor]:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return waited(ferry, voyage)

    monkeypatch.setattr(Ferry, "wait", wait)
    options = {"device": device, "policy": "serial", "nano_batches": (1,), "cache_tokens": 400}
    with LLM(TINY, WEIGHTS, ByteTokenizer(), **options) as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
        assert [completion.tokens for completion in llm.generate(PROMPTS, PARAMS)] == expected
        assert llm.cache.used == 0


def test_a_gpu_is_given_only_what_is_on_it_but_for_pages_of_the_host(
    monkeypatch: pytest.MonkeyPatch, references: None
) -> None:
    driver, ferried, moved = FakeDriver(), set[int](), 0
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    there, run = Ferry.there, Executor.__call__

    def noting(ferry: Ferry, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = there(ferry, tensors)
        ferried.update(map(id, found.values()))
        return found

    def judging(executor: Executor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal moved
        for root in executor.program.graph.roots:
            if root.kind == "input":
                assert (id(inputs[root.name]) in ferried) == (root.device != "host"), root
                moved += root.name.startswith("swap")
        return run(executor, **inputs)

    monkeypatch.setattr(Ferry, "there", noting)
    monkeypatch.setattr(Executor, "__call__", judging)
    small = {"cache_tokens": 160, "page_size": 4, "max_rows": 32, "host_cache": 1 << 22, "preempt": "swap"}
    tokens(device=nr.device("h200"), policy="serial", nano_batches=(1,), **small)
    assert moved
