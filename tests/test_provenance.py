from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nanort as nr
from fake_driver import FakeDriver
from nanort.costs.profile import Measurement, Profile
from nanort.costs.provenance import Versions, machine, versions
from nanort.errors import CostError, ForeignFileError
from nanort.scheduling.schedule import Schedule

CPU = nr.device("cpu")


def graph() -> nr.Graph:
    made = nr.Graph("relu")
    x = made.input("x", (64,), torch.float32, batch=0)
    made.output(y=made.call(torch.relu, x, demand=nr.Demand(flops=64, hbm_bytes=512), axes="rows"))
    return made


def made(where: str, packages: Versions, device: str = CPU.name, sms: int = CPU.sms) -> Profile:
    measurement = Measurement.of(graph().nodes[0], "reference", 1, 1e-3)
    return Profile(device, sms, where, [measurement], versions=packages)


def test_what_was_measured_here_and_now_is_fresh(tmp_path: Path) -> None:
    found = nr.profile(graph(), {"x": torch.ones(64)}, repeats=1)
    assert (found.machine, found.versions, found.stale) == (machine(), versions(), "")
    found.save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json")
    assert (again.versions, again.identity) == (found.versions, found.identity)


@pytest.mark.parametrize(
    ("where", "packages", "says"),
    [
        (machine(), (("nanort", "0.0.1"), ("torch", versions()[1][1])), r"with nanort 0\.0\.1, and \S+ is running"),
        (machine(), (("torch", "1.13"),), r"with torch 1\.13, and \S+ is running"),
        ("another machine", versions(), "on another machine, and this is "),
    ],
)
def test_a_stale_profile_is_refused_unless_it_is_asked_for(
    where: str, packages: Versions, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    stale = made(where, packages)
    stale.save(path)
    with pytest.raises(
        CostError, match=rf"profile.json is stale: it was measured {says}.*: measure again, or .*stale=True"
    ):
        Profile.load(path)
    again = Profile.load(path, stale=True)
    assert again.identity == stale.identity
    assert nr.co_schedule(graph(), CPU, profile=again).profile is again


@pytest.mark.parametrize(
    "profile",
    [
        made("another machine", versions(), "h100", 132),  # this machine plans for one that it is not
        made("another machine", versions(), CPU.name, CPU.sms + 1),
        made("another machine", ()),  # written by hand
        made("another machine", (("driver", "580"), *versions()), "h100", 132),  # a package that is not known here
    ],
)
def test_nothing_says_that_these_are_stale(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json").identity == profile.identity


def test_a_foreign_profile_is_refused() -> None:
    with pytest.raises(CostError, match=r"measured on h100 .*, the plan is for h200"):
        nr.co_schedule(graph(), nr.device("h200"), profile=made("a test", (), "h100"))


def test_versions_tell_profiles_apart_and_schedules_keep_them(tmp_path: Path) -> None:
    one, other = made("a test", versions()), made("a test", ())
    assert one.identity != other.identity
    schedule = nr.co_schedule(graph(), CPU, profile=one)
    schedule.save(tmp_path / "plan.json")
    assert Schedule.load(tmp_path / "plan.json", graph(), profile=one).profile is one
    for profile in (other, None):
        with pytest.raises(ForeignFileError, match=f"rests on the profile {one.identity[:12]}: give"):
            Schedule.load(tmp_path / "plan.json", graph(), profile=profile)


def test_a_gpus_profile_is_stale_with_another_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    h200 = nr.device("h200")
    monkeypatch.setattr("nanort.devices.Device.current", staticmethod(lambda: h200))
    monkeypatch.setattr("nanort.driver.current", FakeDriver)
    assert made("fake GPU, driver 580.0", versions(), "h200", 132).stale == ""
    assert "this is fake GPU, driver 580.0" in made("fake GPU, driver 570.1", versions(), "h200", 132).stale
