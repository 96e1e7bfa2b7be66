from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dags
import nanort as nr
from nanort.costs import shipped as module
from nanort.costs.profile import Measurement, Profile
from nanort.costs.shipped import shipped
from nanort.errors import ForeignFileError

H200 = nr.device("h200")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where shipped profiles lie, in this test."""
    monkeypatch.setattr(module, "PROFILES", tmp_path)
    module._read.cache_clear()
    yield tmp_path
    module._read.cache_clear()


def graph() -> nr.Graph:
    return dags.chain(dags.demand("compute", 1.0), dags.demand("memory", 1.0))


def profile(seconds: float = 0.25) -> Profile:
    one = Measurement.of(graph().seal().nodes[0], "reference", 132, seconds)
    about = {"by": "a test", "measured on": "2026-11-22"}
    versions = (("nanort", "0"), ("torch", "0"))  # of another machine, as shipped ones are of most
    return Profile("h200", 132, "NVIDIA H200", [one], versions=versions, figures={"hbm_bandwidth": 2e12}, about=about)


def test_without_one_plans_rest_on_the_model_and_say_so(folder: Path) -> None:
    schedule = nr.co_schedule(graph(), H200, policy="serial")
    assert schedule.profile is None
    assert "costs      the model of h200, not measured" in str(schedule.explain()).splitlines()


def test_plans_rest_on_the_shipped_profile_and_say_so(folder: Path) -> None:
    profile().save(folder / "h200.json")
    schedule = nr.co_schedule(graph(), H200, policy="serial")
    assert schedule.profile is not None
    assert schedule.device.hbm_bandwidth == 2e12, "figures that were fitted serve what was not measured"
    assert schedule.makespan == pytest.approx(0.25 + 1e-4 * 4.3 / 2, rel=0.05)
    told = "costs      NVIDIA H200, 1 measurement; by a test; measured on 2026-11-22"
    assert told in str(schedule.explain()).splitlines()


def test_a_given_profile_comes_first_and_an_empty_one_leaves_the_model(folder: Path) -> None:
    profile().save(folder / "h200.json")
    own = nr.co_schedule(graph(), H200, policy="serial", profile=profile(0.5))
    assert own.makespan > 0.5
    bare = nr.co_schedule(graph(), H200, policy="serial", profile=Profile("h200", 132, "nothing", ()))
    assert bare.makespan < 0.01


def test_another_device_of_that_name_is_another_device(folder: Path) -> None:
    profile().save(folder / "h200.json")
    assert shipped(H200.with_(sms=128)) is None
    assert shipped(H200.with_(hbm_bandwidth=9e12)) is None, "what is asked is what such a device would do"
    assert shipped(H200.with_(memory_bytes=1 << 36)) == shipped(H200) is not None
    assert shipped(nr.device("h100")) is None
    assert shipped(nr.device("cpu")) is None


def test_a_saved_plan_finds_the_profile_that_it_rests_on(folder: Path, tmp_path: Path) -> None:
    profile().save(folder / "h200.json")
    source = graph()
    schedule = nr.co_schedule(source, H200, policy="serial")
    schedule.save(tmp_path / "schedule.json")
    assert nr.Schedule.load(tmp_path / "schedule.json", source).profile == schedule.profile
    profile(0.5).save(folder / "h200.json")
    module._read.cache_clear()
    with pytest.raises(ForeignFileError, match="rests on the profile"):
        nr.Schedule.load(tmp_path / "schedule.json", source)


def test_what_is_said_of_a_profile_is_kept_and_decides_nothing(tmp_path: Path) -> None:
    one = profile()
    one.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json", stale=True)
    assert again.about == {"by": "a test", "measured on": "2026-11-22"}
    assert (
        again.identity
        == one.identity
        == Profile(
            one.device, one.sms, one.machine, one.measurements, versions=one.versions, figures=one.figures
        ).identity
    )
