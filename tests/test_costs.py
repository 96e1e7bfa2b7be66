from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dags
import nanort as nr
from nanort.costs import files
from nanort.costs.exchange import Exchange
from nanort.costs.profile import Measurement, Pair, Profile
from nanort.costs.roofline import Costs, smooth_max
from nanort.costs.table import demand_table
from nanort.errors import CapacityError, CostError, DemandError, FileError, NewerVersionError, TruncatedFileError
from nanort.nodes import Node
from nanort.scheduling.bounds import fewest_sms

H200 = nr.device("h200").with_(hbm_saturation_sms=(64, 64))
LAUNCH = H200.launch_seconds


def node(demand: nr.Demand, **pins: object) -> Node:
    graph = nr.Graph("one")
    dags.node(graph, "n", demand, graph.input("x", (2, 3), torch.bfloat16), **pins)
    return graph.nodes[0]


# The model.


@pytest.mark.parametrize("sms", [132, 66, 11])
def test_compute_bound_work_takes_its_flops_at_the_rate_of_its_sms(sms: int) -> None:
    cost = Costs(H200).solo(node(nr.Demand(flops=7.8e11)), sms)
    assert cost.seconds == pytest.approx(1e-3 * 132 / sms + LAUNCH, rel=1e-12)
    assert cost.hbm == 0


@pytest.mark.parametrize(("sms", "slower"), [(132, 1), (64, 1), (32, 2), (8, 8)])
def test_memory_bound_work_has_all_bandwidth_from_the_saturation_point_on(sms: int, slower: int) -> None:
    cost = Costs(H200).solo(node(nr.Demand(hbm_bytes=4.3e9)), sms)
    assert cost.seconds == pytest.approx(1e-3 * slower + LAUNCH, rel=1e-12)
    assert cost.hbm * cost.seconds == pytest.approx(1e-3, rel=1e-12)


def test_the_pessimistic_saturation_point_is_the_default() -> None:
    assert Costs(nr.device("h200")).saturation == 85


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_smooth_maximum_is_at_least_the_larger_and_little_more(a: float, b: float) -> None:
    assert max(a, b) <= smooth_max(a, b) == smooth_max(b, a) <= 1.0906 * max(a, b)
    assert smooth_max(a, 0.0) == a


@pytest.mark.parametrize(
    ("tiles", "sms", "rounds"), [(132, 132, 1), (133, 132, 2), (264, 132, 2), (128, 64, 2), (129, 64, 3), (100, 132, 1)]
)
def test_arithmetic_in_tiles_takes_whole_rounds_of_them(tiles: int, sms: int, rounds: int) -> None:
    """A tile takes what one SM needs for its part of the work, and each SM does one after another."""
    cost = Costs(H200).solo(node(nr.Demand(flops=7.8e11, tiles=tiles)), sms)
    assert cost.seconds == pytest.approx(rounds * 132e-3 / tiles + LAUNCH, rel=1e-12)


def test_no_more_sms_are_used_than_there_are_tiles() -> None:
    one = node(nr.Demand(hbm_bytes=4.3e9, tiles=16))
    assert one.span == (1, 16)
    assert Costs(H200).solo(one, 132) == Costs(H200).solo(one, 16)
    assert node(nr.Demand(sms=(8, 64), tiles=16)).span == (8, 16)
    assert node(nr.Demand(sms=(8, 64), tiles=4)).span == (8, 8), "the least is what was asked for"
    assert node(nr.Demand(sms=(8, 64), tiles=100)).span == (8, 64)
    assert node(nr.Demand(h2d_bytes=1, sms=(0, 0), tiles=4)).span == (0, 0)
    assert node(nr.Demand(tiles=16), sms=(2, 3)).span == (2, 3), "a pin is the user's"


def test_a_piece_has_its_part_of_the_tiles() -> None:
    assert nr.Demand(flops=8, tiles=10).scaled(0.25) == nr.Demand(flops=2, tiles=3)


def test_a_piece_has_no_tile_more_than_its_part() -> None:
    assert [nr.Demand(flops=1, tiles=n).scaled(k / n).tiles for n, k in ((25, 7), (100, 7), (29, 15))] == [7, 7, 15]
    assert nr.Demand(flops=1, tiles=1).scaled(1e-9).tiles == 1


def test_cores_share_out_fewer_tiles_than_there_are_cores() -> None:
    cpu, asked = nr.device("cpu").with_(sms=16, hbm_saturation_sms=(2, 4)), nr.Demand(flops=1e9)
    assert Costs(cpu).solo(node(nr.Demand(flops=1e9, tiles=1)), 16) == Costs(cpu).solo(node(asked), 16)


def test_cores_share_any_work_out_at_will() -> None:
    cpu, asked = nr.device("cpu").with_(sms=4, hbm_saturation_sms=(2, 4)), nr.Demand(flops=1e9)
    assert Costs(cpu).solo(node(nr.Demand(flops=1e9, tiles=5)), 4) == Costs(cpu).solo(node(asked), 4)


@pytest.mark.parametrize("tiles", [-1, 1.5, True])
def test_tiles_are_counted(tiles: Any) -> None:
    with pytest.raises(DemandError, match="is no number of tiles"):
        nr.Demand(tiles=tiles)


@given(st.floats(1, 1e13), st.floats(0, 1e11), st.integers(1, 131), st.integers(1, 500))
def test_more_sms_never_cost_seconds_of_tiles(flops: float, hbm_bytes: float, sms: int, tiles: int) -> None:
    one, costs = node(nr.Demand(flops=flops, hbm_bytes=hbm_bytes, tiles=tiles)), Costs(H200)
    assert costs.solo(one, sms + 1).seconds <= costs.solo(one, sms).seconds * (1 + 1e-12)
    assert fewest_sms(one, costs) <= sms * costs.solo(one, sms).seconds / 132 * (1 + 1e-12)


@given(st.floats(0, 1e13), st.floats(0, 1e11), st.integers(1, 131))
def test_more_sms_never_cost_seconds_and_never_save_sm_seconds(flops: float, hbm_bytes: float, sms: int) -> None:
    """What the lower bounds rest on."""
    costs, one = Costs(H200), node(nr.Demand(flops=flops, hbm_bytes=hbm_bytes))
    few, more = costs.solo(one, sms).seconds, costs.solo(one, sms + 1).seconds
    assert more <= few * (1 + 1e-12)
    assert sms * few <= (sms + 1) * more * (1 + 1e-12)


def test_a_node_uses_no_more_sms_than_it_asks_for() -> None:
    costs = Costs(H200)
    capped = node(nr.Demand(flops=1e12, sms=(8, 16)))
    assert costs.solo(capped, 132) == costs.solo(capped, 16)
    assert costs.solo(node(nr.Demand(flops=1e12), sms=(8, 16)), 132) == costs.solo(capped, 16)


def test_a_transfer_takes_its_bytes_at_pcie_bandwidth_and_draws_both() -> None:
    cost = Costs(H200).solo(node(nr.Demand(h2d_bytes=5e7, hbm_bytes=5e7, sms=(0, 0))), 0)
    assert cost.seconds == pytest.approx(1e-3 + LAUNCH, rel=1e-12)
    assert cost.h2d == pytest.approx(1e-3 / cost.seconds, rel=1e-12)
    assert cost.hbm == pytest.approx(5e7 / 4.3e12 / cost.seconds, rel=1e-12)


def test_the_network_is_one_more_roof() -> None:
    one = node(nr.Demand(flops=7.8e11, net_bytes=4.5e9))
    assert Costs(H200).solo(one, 132).seconds == pytest.approx(1e-2 + LAUNCH, rel=1e-12)
    with pytest.raises(CapacityError, match="n sends over a network, and h200 has none"):
        Costs(H200.with_(net_bandwidth=0.0)).solo(one, 132)


def test_a_rigid_demand_is_taken_at_its_word() -> None:
    cost = Costs(H200).solo(node(nr.Demand.rigid(seconds=0.5, sms=(8, 64), hbm=0.25, d2h=0.1)), 8)
    assert (cost.seconds, cost.hbm, cost.d2h) == (0.5, 0.25, 0.1)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("compute", "compute"),
        ("memory", "memory"),
        ("upload", "pcie"),
        ("zero_copy", "pcie"),
        ("network", "network"),
        ("launch", "launch"),
    ],
)
def test_what_bounds_a_node(kind: str, bound: str) -> None:
    assert node(dags.demand(kind, 1.0)).bound_by(H200) == bound


def test_what_bounds_a_rigid_node_is_its_largest_share_if_that_is_more_than_half() -> None:
    shares = ({"hbm": 0.9}, {"h2d": 0.8, "hbm": 0.6}, {"hbm": 0.4})
    rigid = [node(nr.Demand.rigid(seconds=1.0, sms=8, **share)) for share in shares]
    assert [one.bound_by(H200) for one in rigid] == ["memory", "pcie", "compute"]


@pytest.mark.parametrize("saturation", [0, 133])
def test_a_saturation_point_off_the_device_is_refused(saturation: int) -> None:
    with pytest.raises(CostError, match=f"saturation={saturation} SMs: h200 has 1 to 132"):
        Costs(H200, saturation=saturation)


def test_a_kernel_without_sms_is_refused() -> None:
    with pytest.raises(CostError, match="n needs SMs, and it was given 0"):
        Costs(H200).solo(node(nr.Demand(flops=1.0)), 0)


def test_the_table_adds_up_the_demands_of_each_operator() -> None:
    graph = dags.chain(dags.demand("memory", 1.0), dags.demand("memory", 1.0), dags.demand("upload", 1.0))
    (name, count, flops, hbm, pcie, bound), *rest = demand_table(graph, H200).rows
    assert (name, count, bound, rest) == ("_touch", 3, "memory", [])
    assert flops == sum(n.demand.flops for n in graph.nodes)
    assert (hbm, pcie) == (sum(n.demand.hbm_bytes for n in graph.nodes), graph.nodes[2].demand.h2d_bytes)


# Profiles.

WORK = nr.Demand(flops=7.8e11)


def profile(*points: tuple[str, int, float], demand: nr.Demand = WORK, pairs: tuple[Pair, ...] = ()) -> Profile:
    return Profile("h200", 132, "a test", [Measurement.of(node(demand), *point) for point in points], pairs)


def test_a_measurement_replaces_the_model_for_equal_calls_alone() -> None:
    costs = Costs(H200, profile(("reference", 132, 0.5)))
    assert costs.solo(node(WORK), 132).seconds == 0.5
    other = nr.Demand(flops=7.7e11)
    assert costs.solo(node(other), 132) == Costs(H200).solo(node(other), 132)


def test_seconds_between_measured_counts_follow_a_part_that_sms_share_and_one_that_they_do_not() -> None:
    def law(sms: int) -> float:
        return 0.1 + 3.0 / sms

    costs = Costs(H200, profile(*(("reference", sms, law(sms)) for sms in (16, 64, 132))))
    for sms in (16, 17, 40, 64, 100, 132):
        assert costs.solo(node(WORK), sms).seconds == pytest.approx(law(sms), rel=1e-12)


def test_outside_the_measured_counts_the_model_is_scaled_to_meet_the_nearest() -> None:
    model = Costs(H200)
    costs = Costs(H200, profile(("reference", 16, 0.5), ("reference", 64, 0.4)))
    for sms, near, measured in ((8, 16, 0.5), (132, 64, 0.4)):
        scale = measured / model.solo(node(WORK), near).seconds
        expected = model.solo(node(WORK), sms).seconds * scale
        assert costs.solo(node(WORK), sms).seconds == pytest.approx(expected, rel=1e-12)


def test_the_fastest_measured_kernel_is_chosen_at_each_count() -> None:
    costs = Costs(H200, profile(("a", 8, 0.5), ("b", 8, 0.6), ("a", 64, 0.4), ("b", 64, 0.3)))
    assert [costs.solo(node(WORK), sms).kernel for sms in (8, 64)] == ["a", "b"]


def test_a_profile_of_another_device_is_refused() -> None:
    with pytest.raises(CostError, match=r"measured on h200 \(132 SMs\), the plan is for a100-80g \(108 SMs\)"):
        Costs(nr.device("a100-80g"), profile())


def test_a_profile_keeps_one_measurement_of_each() -> None:
    with pytest.raises(CostError, match=r"_touch \(a\) on 8 SMs was measured twice"):
        profile(("a", 8, 0.5), ("a", 8, 0.6))
    with pytest.raises(CostError, match="pair of operators was measured twice"):
        profile(pairs=(Pair("a", "b", 1.0, 2.0), Pair("b", "a", 2.0, 1.0)))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_have_been_measured_is_refused(seconds: float) -> None:
    with pytest.raises(CostError, match="more than zero seconds"):
        profile(("a", 8, seconds))


# Exchanges.

GEMV = ((0.1, 0.2), (0.2, 0.3), (0.4, 0.8), (0.8, 0.85), (0.9, 0.95))


def exchanging(*points: tuple[float, float], measured: tuple[Measurement, ...] = ()) -> Costs:
    return Costs(H200, Profile("h200", 132, "a test", measured, exchange={"_touch": points}))


@pytest.mark.parametrize(("share", "performance"), [*GEMV, (0.05, 0.1), (0.3, 0.55), (0.95, 0.975), (1.0, 1.0)])
def test_an_exchange_goes_straight_from_point_to_point(share: float, performance: float) -> None:
    assert Exchange("gemv", GEMV).performance(share) == pytest.approx(performance, rel=1e-12)


@pytest.mark.parametrize(
    "demand",
    [
        nr.Demand(flops=7.8e11),
        nr.Demand(hbm_bytes=4.3e9),
        nr.Demand(net_bytes=4.5e9, hbm_bytes=1e9),
        nr.Demand.rigid(seconds=0.5, sms=(8, 132), hbm=0.8, d2h=0.1),
    ],
)
def test_where_there_is_an_exchange_it_alone_says_what_fewer_sms_cost(demand: nr.Demand) -> None:
    one = node(demand)
    whole, costs = Costs(H200).solo(one, 132), exchanging((0.25, 0.5))
    assert costs.solo(one, 132) == whole
    for sms, performance in ((33, 0.5), (66, 2 / 3), (11, 1 / 6)):
        cost = costs.solo(one, sms)
        assert cost.seconds == pytest.approx(whole.seconds / performance, rel=1e-12)
        for link in ("hbm", "h2d", "d2h", "net"):  # it moves the same bytes, so that two of them cannot have more
            moved = getattr(cost, link) * cost.seconds
            assert moved == pytest.approx(getattr(whole, link) * whole.seconds, rel=1e-12)


def test_an_exchange_starts_from_measured_seconds() -> None:
    measured = tuple(Measurement.of(node(WORK), "fused", sms, seconds) for sms, seconds in ((66, 9.0), (132, 0.5)))
    cost = exchanging((0.5, 0.8), measured=measured).solo(node(WORK), 66)
    assert (cost.seconds, cost.kernel) == (0.625, "fused")


def test_an_exchange_leaves_other_operators_and_copies_alone() -> None:
    copy = node(nr.Demand(h2d_bytes=5e7, sms=(0, 0)))
    assert exchanging((0.25, 0.5)).solo(copy, 0) == Costs(H200).solo(copy, 0)
    other = Costs(H200, Profile("h200", 132, "a test", [], exchange={"other": GEMV}))
    assert other.solo(node(WORK), 33) == Costs(H200).solo(node(WORK), 33)


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6),
    st.tuples(st.integers(1, 132), st.integers(1, 132)),
)
def test_bounds_know_where_an_exchange_is_cheapest(
    shares: list[float], performances: list[float], span: tuple[int, int]
) -> None:
    costs = exchanging(*zip(sorted(shares), sorted(performances), strict=False))
    one = node(nr.Demand.rigid(seconds=1.0, sms=(min(span), max(span))))
    cheapest = min(sms * costs.solo(one, sms).seconds for sms in range(min(span), max(span) + 1)) / 132
    assert fewest_sms(one, costs) == pytest.approx(cheapest, rel=1e-12)


@pytest.mark.parametrize(
    "points",
    [
        ((0.2, 0.5), (0.4, 0.4)),
        ((0.2, 0.5), (0.2, 0.6)),
        ((0.0, 0.5),),
        ((1.0, 0.5),),
        ((0.5, 1.1),),
        ((0.5, 0.0),),
        ((float("nan"), 0.5),),
        ((0.5, float("nan")),),
        ((-0.5, -0.5),),
    ],
)
def test_an_exchange_that_cannot_have_been_measured_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(CostError, match=r"exchange of '_touch': .* give shares that rise between 0 and 1"):
        exchanging(*points)


@pytest.mark.parametrize("slowdown", [0.9, float("nan"), float("inf")])
def test_a_slowdown_that_cannot_have_been_measured_is_refused(slowdown: float) -> None:
    with pytest.raises(CostError, match="slowdowns are 1 or more"):
        Pair("a", "b", 1.0, slowdown)


# Files.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = profile(("a", 8, 1 / 3), ("a", 16, 0.2), pairs=(Pair("x", "y", 1.1, 1.0),))
    made.save(tmp_path / "profile.json")
    return tmp_path / "profile.json"


def test_a_profile_is_read_as_it_was_written(saved: Path) -> None:
    again = Profile.load(saved)
    made = profile(("a", 16, 0.2), ("a", 8, 1 / 3), pairs=(Pair("x", "y", 1.1, 1.0),))
    assert (again.measurements, again.pairs, again.identity) == (made.measurements, made.pairs, made.identity)
    assert again.identity != profile(("a", 8, 1 / 3)).identity


def test_an_exchange_is_read_as_it_was_written_and_names_its_plans(tmp_path: Path) -> None:
    made = Profile("h200", 132, "a test", [], exchange={"gemv": reversed(GEMV), "as much as it holds": ()})
    made.save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json")
    assert again.exchange == made.exchange == {name: made.exchange[name] for name in ("as much as it holds", "gemv")}
    assert again.exchange["gemv"].points == GEMV
    others = (profile(), Profile("h200", 132, "a test", [], exchange={"gemv": GEMV}))
    assert again.identity == made.identity not in [other.identity for other in others]


def test_profiles_of_the_first_version_are_read(saved: Path) -> None:
    old = {key: value for key, value in json.loads(saved.read_text()).items() if key != "exchange"}
    written = Profile.load(saved)
    saved.write_text(json.dumps(old | {"version": 1}))
    assert (Profile.load(saved).identity, Profile.load(saved).exchange) == (written.identity, {})


def test_a_profile_that_is_cut_short_is_refused(saved: Path) -> None:
    text = saved.read_text()
    for length in range(0, len(text) - 2, 13):
        saved.write_text(text[:length])
        with pytest.raises(TruncatedFileError):
            Profile.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        ("schema", "nanort.schedule", TruncatedFileError, "no nanort.profile file"),
        ("version", 4, NewerVersionError, "reads up to 3: update nanort"),
        ("version", "1", FileError, "version is '1'"),
        ("sms", 1.5, FileError, "sms is 1.5, not of type int"),
        ("sms", True, FileError, "sms is True, not of type int"),
        ("unknown", 1, FileError, "has the fields"),
        ("about", {"by": 1}, FileError, "by is 1, not of type str"),
        ("machine", None, FileError, "machine is None, not of type str"),
        ("columns", ["seconds"], FileError, "columns are"),
        ("measurements", [[1, 2]], FileError, "measurement 0 is"),
        ("measurements", [["op", "a", [1], "bfloat16", 1.0, 1.0, 8, 0.5]], FileError, "not a list of shapes"),
        ("measurements", [["op", "a", [[1.5]], "bfloat16", 1.0, 1.0, 8, 0.5]], FileError, "measurement 0 is 1.5"),
        ("measurements", [["op", "a", [[1]], "bfloat16", 1.0, 1.0, 8, -1.0]], CostError, "more than zero seconds"),
        ("pairs", [["a", "b", 1.0, "x"]], FileError, "pair 0 is 'x'"),
        ("exchange", [["a", [[0.1, 0.2]]], ["a", []]], FileError, "exchange 1: 'a' has one already"),
        ("exchange", [["a", [0.1, 0.2]]], FileError, "exchange 0 is 0.1, not a list of 2"),
        ("exchange", [["a", [[0.1, True]]]], FileError, "exchange 0 is True, not of type float"),
        ("exchange", [["a", [[0.1, 1.5]]]], CostError, "exchange of 'a'"),
    ],
)
def test_a_profile_is_read_strictly(saved: Path, key: str, value: object, error: type[Exception], says: str) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {key: value}))
    with pytest.raises(error, match=says):
        Profile.load(saved)


@pytest.mark.parametrize(("number", "says"), [("NaN", "holds NaN"), ("-Infinity", "holds -Infinity"), ("1e999", "inf")])
def test_no_number_of_a_profile_is_infinite(saved: Path, number: str, says: str) -> None:
    saved.write_text(saved.read_text().replace("0.2]", f"{number}]"))
    with pytest.raises(FileError, match=says):
        Profile.load(saved)


def test_a_field_stands_in_a_file_once(saved: Path) -> None:
    saved.write_text(saved.read_text().replace('"sms": 132', '"sms": 8, "sms": 132'))
    with pytest.raises(FileError, match="states a field twice"):
        Profile.load(saved)


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(FileError, match="NaN or infinite figure cannot be saved"):
        files.write(saved, "nanort.profile", 1, {"figures": [0.5, float("nan")]})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
