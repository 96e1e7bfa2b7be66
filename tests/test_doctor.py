from __future__ import annotations

import pytest

import nanort as nr
from fake_driver import FakeDriver
from nanort import doctor
from nanort.doctor import diagnose
from nanort.errors import BackendError, DeviceError
from nanort.runtime.partitions import partitions

GPU = ("driver", "gpu", "sms", "granularity", "green-contexts", "copy-engines", "h2d", "d2h", "fallback")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return use(monkeypatch, FakeDriver())


def use(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> FakeDriver:
    monkeypatch.setattr("nanort.driver.current", lambda: driver)
    monkeypatch.setattr(doctor, "COPIED_BYTES", 1 << 16)
    return driver


def test_a_gpu_is_described_measured_and_left_as_it_was(fake: FakeDriver) -> None:
    facts = diagnose()
    rate = f"{(1 << 16) / (1e-6 + (1 << 16) / 5e10) / 1e9:.1f} GB/s"
    assert {name: facts[name] for name in GPU} == {
        "driver": "580.0",
        "gpu": "fake GPU",
        "sms": "132, 128 of them in groups",
        "granularity": "groups are multiples of 8 SMs",
        "green-contexts": "work: 64 + 64 of 132 SMs granted to a test split",
        "copy-engines": "2",
        "h2d": f"{rate} pinned, {rate} pageable",
        "d2h": f"{rate} pinned, {rate} pageable",
        "fallback": "none needed",
    }
    assert facts["cuda"].startswith("13.0 of the driver")
    assert facts["backends"] == "cuda, cpu, sim"
    copied = [call[3] for call in fake.calls if call[0] == "copy"]
    assert list(dict.fromkeys(copied)) == ["h2d", "d2d", "d2h"], "the fake takes pageable memory for the device's"
    assert not fake.live["event"]
    diagnose()
    assert len(fake.live["stream"]) == 3, "streams are given back"
    partitions(fake).close()
    assert not any(fake.live.values())
    assert fake.memory == 2**40


def test_without_green_contexts_the_fallback_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeDriver(green=False))
    facts = diagnose()
    assert facts["green-contexts"] == "there are none"
    assert facts["granularity"] == "no groups of SMs"
    assert facts["fallback"].startswith("plain streams, each on all SMs: ")
    assert facts["h2d"].endswith("pageable")


def test_without_a_gpu_each_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu = use(monkeypatch, FakeDriver())
    expected = list(diagnose())

    def missing() -> FakeDriver:
        raise BackendError("torch sees no GPU:\ninstall a driver")

    monkeypatch.setattr("nanort.driver.current", missing)
    calls = len(with_gpu.calls)
    facts = diagnose()
    assert list(facts) == expected
    assert facts["driver"] == "none: torch sees no GPU: install a driver"
    assert {facts[name] for name in GPU[1:-1]} == {"no GPU that can be used"}
    assert facts["fallback"].startswith("cpu")
    assert facts["backends"] == "cpu, sim"
    assert len(with_gpu.calls) == calls


def test_a_gpu_that_the_database_lacks_is_one_line(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> nr.Device:
        raise DeviceError("the database has no rates for 'GB999'")

    monkeypatch.setattr(nr.Device, "current", unknown)
    facts = diagnose()
    assert facts["device"] == "failed: the database has no rates for 'GB999'"
    assert facts["gpu"] == "fake GPU"


METHODS = (
    "facts", "resource", "split", "create_context", "granted", "create_stream", "create_event", "allocate", "record",
    "copy", "synchronize", "seconds", "destroy_event",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_whatever_the_driver_refuses_is_a_line_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    names = list(diagnose())
    driver = use(monkeypatch, FakeDriver())
    driver.fail_at(method)
    facts = diagnose()
    assert list(facts) == names
    assert [name for name, fact in facts.items() if fact.startswith(f"failed: {method} ")]
    assert any(not facts[name].startswith("failed") for name in GPU)
    assert all("\n" not in fact for fact in facts.values())
    assert not driver.live["event"]


def test_the_methods_above_are_all_that_are_called(fake: FakeDriver) -> None:
    diagnose()
    assert {call[0] for call in fake.calls} == set(METHODS)
