from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import fake_driver
import nanort as nr
import nanort.driver
from nanort.runtime.partitions import partitions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fake", action="store_true", help="on the fake of the driver: proves these tests, not the GPU")
    parser.addoption("--graphs", type=int, default=200, help="how many random graphs are run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("fake"):
        os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; read when one of them is imported


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("graphs")))


@pytest.fixture
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[nanort.driver.Driver]:
    if request.config.getoption("fake"):
        made = fake_driver.FakeDriver(seed=0)
        monkeypatch.setattr(nanort.driver, "current", lambda: made)
        yield made
        partitions(made).close()
    elif torch.cuda.is_available():
        yield nanort.driver.current()
    else:
        pytest.skip("torch sees no GPU")


@pytest.fixture
def device(driver: nanort.driver.Driver) -> nr.Device:
    return nr.device("h200") if driver.device == "cpu" else nr.Device.current()
