"""shipped: profiles of GPUs that come with nanort, which plans for them rest on where no other is given."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from nanort.costs.profile import FIGURES, Profile
from nanort.devices import Device
from nanort.devices import device as known

PROFILES = Path(__file__).with_name("profiles")


def shipped(device: Device) -> Profile | None:
    """What was measured on a GPU like ``device``; None until someone has.

    It is made by ``nanort profile --out nanort/costs/profiles/h200.json``. An empty Profile in its place leaves
    everything to the cost model.
    """
    found = _read(device.name) if device.kind == "cuda" else None
    if found is None or found.sms != device.sms:
        return None
    usual = known(device.name)
    fitted = found.fitted(usual)
    own = all(getattr(device, name) in (getattr(usual, name), getattr(fitted, name)) for name in (*FIGURES, "flops"))
    return found if own else None  # else the figures are the user's, who asks for another device


@cache
def _read(name: str) -> Profile | None:
    path = PROFILES / f"{name}.json"
    return Profile.load(path, stale=True) if path.exists() else None  # it is of another machine than most
