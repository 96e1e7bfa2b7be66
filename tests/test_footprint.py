from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.costs.footprint import KIB, LIMITS, Footprint, fit_together, footprint, load, programs_per_sm, save
from nanort.errors import DeviceError, FileError

CAPABILITIES = st.sampled_from(sorted(LIMITS))
FOOTPRINTS = st.builds(Footprint, st.integers(16, 255), st.integers(0, 120 * KIB), st.sampled_from([32, 96, 128, 256]))


@pytest.mark.parametrize(
    ("registers", "threads", "programs"),
    [
        (37, 128, 12),  # both of the CUDA Best Practices Guide, "Calculating Occupancy": 75 and 63 % of 2,048 threads
        (37, 320, 4),
        (32, 1024, 2),  # the full 64 Ki registers
        (33, 1024, 1),
        (255, 256, 1),
        (255, 384, 0),  # more registers than there are
        (0, 32, 32),
        (16, 128, 16),  # 2,048 threads
        (168, 128, 3),  # 12 warps: each quarter holds 3 of 5,376 registers, though 12.2 would fit in all of the SM
        (136, 128, 3),  # the same for 3.76 of 4,352
    ],
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_registers_and_threads_bound_programs(registers: int, threads: int, programs: int, capability: int) -> None:
    assert programs_per_sm(Footprint(registers, 0, threads), capability) == programs


@pytest.mark.parametrize(
    ("capability", "most"),
    [(80, 163), (89, 99), (90, 227), (100, 227)],  # KiB a block, of the tuning guides of Ampere, Ada, Hopper, Blackwell
)
def test_shared_memory_bounds_programs(capability: int, most: int) -> None:
    assert programs_per_sm(Footprint(32, most * KIB, 128), capability) == 1
    assert programs_per_sm(Footprint(32, most * KIB + 1, 128), capability) == 0
    half = (most + 1) // 2 - 1
    assert programs_per_sm(Footprint(32, half * KIB, 128), capability) == 2
    assert programs_per_sm(Footprint(32, half * KIB + 1, 128), capability) == 1


@pytest.mark.parametrize(("capability", "small", "threads"), [(80, 32, 2048), (89, 24, 1536), (90, 32, 2048)])
def test_programs_and_threads_of_an_sm(capability: int, small: int, threads: int) -> None:
    assert programs_per_sm(Footprint(16, 0, 32), capability) == small
    assert programs_per_sm(Footprint(16, 0, 512), capability) == threads // 512


@given(FOOTPRINTS, FOOTPRINTS, CAPABILITIES)
def test_what_fits_together_fits_in_either_order_and_alone(a: Footprint, b: Footprint, capability: int) -> None:
    fits = fit_together(a, b, capability)
    assert fits == fit_together(b, a, capability)
    assert not fits or min(programs_per_sm(a, capability), programs_per_sm(b, capability)) >= 1


@given(FOOTPRINTS, CAPABILITIES)
def test_two_of_one_kernel_fit_together_if_an_sm_holds_two(each: Footprint, capability: int) -> None:
    whole = Footprint(each.registers, each.shared_bytes, -(-each.threads // 128) * 128)  # in all quarters alike
    assert fit_together(whole, whole, capability) == (programs_per_sm(whole, capability) >= 2)


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        (Footprint(128, 64 * KIB, 128), True),
        (Footprint(128, 90 * KIB, 128), True),  # 136 + 90 KiB and 1 KiB for each: all there is
        (Footprint(128, 90 * KIB + 1, 128), False),
        (Footprint(176, 64 * KIB, 128), True),  # 2 warps a quarter of 5,376 registers leave 5,632 for one
        (Footprint(177, 64 * KIB, 128), False),
        (Footprint(16, 0, 1024), True),
        (Footprint(16, 0, 2048), False),
    ],
)
def test_shared_memory_registers_and_threads_are_shared_out(other: Footprint, fits: bool) -> None:
    assert fit_together(Footprint(168, 136 * KIB, 256), other, 90) == fits


def test_unknown_capability_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"compute capability 70 .* one of 80, 89, 90, 100"):
        programs_per_sm(Footprint(32, 0, 128), 70)
    assert footprint("silu_mul", "triton", 70) is None


def test_shipped_footprints_are_found_by_operator_and_kernel() -> None:
    shipped, _ = load()
    assert {capability for capability, _ in shipped} == {80, 90, 100}
    for (capability, name), expected in shipped.items():
        assert footprint(*name.split("."), capability) == expected
        assert programs_per_sm(expected, capability) >= 1
    assert footprint("silu_mul", "torch", 90) is footprint("nothing", "triton", 90) is None


def test_saved_footprints_load_as_they_were(tmp_path: Path) -> None:
    path, footprints = tmp_path / "footprints.json", {(90, "a.b"): Footprint(1, 2, 3), (80, "a.b"): Footprint(4, 5, 6)}
    save(footprints, "3.9.0", path)
    assert load(path) == (footprints, "3.9.0")
    path.write_text(path.read_text().replace("[80,", '["80",'))
    with pytest.raises(FileError, match="not of type int"):
        load(path)
