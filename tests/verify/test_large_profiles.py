"""A profile of 200 MB read in bounded memory; the seconds it takes are printed."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kineto_profiles import large

SIZE, MOST_BYTES = 200_000_000, 160_000_000
"""Of the file, and of the memory that reading it takes at most beside what nanort itself takes."""
READ = """
import json, resource, sys, time
from nanort.timeline.events import Timeline
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, began = most(), time.process_time()
timeline = Timeline.from_torch_profile(sys.argv[1])
took = time.process_time() - began
busy = sum(round(event.seconds * 1e9) for event in timeline)
print(json.dumps({"kernels": len(timeline), "busy": busy, "seconds": took, "bytes": most() - before}))
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    path = tmp_path_factory.mktemp("large") / "profile.json"
    return path, *large(path, SIZE)


@pytest.mark.parametrize("packed", [False, True])
def test_a_profile_of_200_megabytes_needs_less_memory_than_its_size(
    packed: bool, profile: tuple[Path, int, int]
) -> None:
    path, kernels, busy = profile
    if packed:
        path = path.with_suffix(".json.gz")
        with profile[0].open("rb") as plain, gzip.open(path, "wb", compresslevel=1) as file:
            shutil.copyfileobj(plain, file)
    run = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    print(f"{path.name}: {found['seconds']:.1f} s, {found['bytes'] / 1e6:.0f} MB beside nanort itself")
    assert (found["kernels"], found["busy"]) == (kernels, busy)
    assert found["bytes"] < MOST_BYTES
