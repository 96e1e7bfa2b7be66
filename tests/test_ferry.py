from __future__ import annotations

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.serving.ferry import Ferry

GIVEN = {
    "tokens": torch.tensor([3, -1, 4]),
    "pages": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32),
    "uniform": torch.tensor([0.25]),
    "none": torch.zeros(0, 4),
}


def test_on_the_cpu_all_is_there_already() -> None:
    ferry = Ferry(nr.device("cpu"))
    found = ferry.there(GIVEN)
    assert found["tokens"] is GIVEN["tokens"]
    assert ferry.wait(ferry.back(found)) == found
    assert not ferry.waits


def test_a_gpu_gets_all_in_one_copy_and_the_host_waits_for_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(seed=1)
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    ferry = Ferry(nr.device("h200"))
    found = ferry.there(GIVEN)
    assert driver.pinned == 1
    voyage = ferry.back(found)
    back = ferry.wait(voyage)
    assert all(back[name].equal(tensor) and back[name].dtype == tensor.dtype for name, tensor in GIVEN.items())
    copies = [call for call in driver.calls if call[0] == "copy"]
    assert len([copy for copy in copies if copy[3] == "h2d"]) == 1
    assert not driver.live["event"]
    del voyage, back
    assert driver.pinned == 0
