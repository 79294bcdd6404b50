"""The exact times of every published convention."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from depure.diffusion import VPSDE, Grid, Schedule, VPDiscrete
from depure.diffusion.schedules import label_of

LINEAR, SDE = VPDiscrete.linear(), VPSDE()

DISCRETE: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    # settings, times, index noised at
    ({}, (*range(99, -1, -1), -1), 99),
    ({"steps": 100}, (*range(99, -1, -1), -1), 99),
    ({"steps": 5}, (99, 79, 59, 39, 19, -1), 99),
    ({"steps": 3}, (99, 65, 32, -1), 99),
    ({"steps": 1}, (99, -1), 99),
    ({"convention": "addt"}, (*range(100, -1, -1), -1), 100),
    ({"convention": "addt", "steps": 50}, (*range(100, -1, -2), -1), 100),
    ({"convention": "addt", "steps": 10}, (*range(100, -1, -10), -1), 100),
    ({"convention": "addt", "steps": 5}, (100, 80, 60, 40, 20, 0, -1), 100),
    ({"convention": "adbm"}, (*range(99, -1, -1), -1), 100),
    ({"convention": "adbm", "steps": 5}, (99, 79, 59, 39, 19, -1), 100),
    ({"t_star": 1.0, "steps": 2}, (999, 499, -1), 999),
    ({"t_star": 1.0, "steps": 2, "convention": "adbm"}, (999, 499, -1), 999),
    ({"t_star": 0.001}, (0, -1), 0),
    ({"t_star": 0.15}, (*range(149, -1, -1), -1), 149),
]


@pytest.mark.parametrize(("settings", "times", "noised"), DISCRETE)
def test_discrete(settings: dict[str, Any], times: tuple[int, ...], noised: int) -> None:
    path = Grid(**settings).path(LINEAR)
    assert path.times == times
    assert all(isinstance(t, int) for t in path.times)
    assert (path.alpha, path.sigma) == (LINEAR.alpha(noised), LINEAR.sigma(noised))
    assert path.pairs == tuple((times[i], times[i + 1]) for i in range(len(times) - 1))


@pytest.mark.parametrize(
    ("schedule", "convention", "alpha_bar"),
    [
        (SDE.discrete(), "diffpure", 0.89702),
        (LINEAR, "addt", 0.8951),
        (LINEAR, "adbm", 0.8951),
        (VPDiscrete.linear(first=1e-6), "adbm", 0.9037),
        (SDE, "diffpure", 0.89702),  # the discrete number on the SDE, as DiffPure's code has it
        (SDE, "addt", 0.89440),  # exp(-9.95 0.101^2 - 0.1 0.101), the continuous number
    ],
)
def test_noised_at(schedule: Schedule, convention: Any, alpha_bar: float) -> None:
    path = Grid(0.1, convention=convention).path(schedule)
    assert path.alpha**2 == pytest.approx(alpha_bar, abs=5e-5)
    assert path.alpha**2 + path.sigma**2 == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("convention", ["diffpure", "addt", "adbm"])
@pytest.mark.parametrize("t_star", [0.001, 0.029, 0.075, 0.1, 0.15, 0.29, 0.57, 0.999])
def test_every_index_is_visited_once(convention: Any, t_star: float) -> None:
    """Float32 accumulation visits 149 distinct indices in the 150 steps of t_star = 0.15."""
    top = round(1000 * t_star)
    times = Grid(t_star, convention=convention).path(LINEAR).times
    calls = top + (convention == "addt")
    assert times == (*range(calls - 1, -1, -1), -1)


@pytest.mark.parametrize("steps", range(1, 38))
def test_strided_steps_fall_strictly_to_clean(steps: int) -> None:
    times = Grid(0.1, steps).path(VPDiscrete.linear(370)).times
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (36, -1)
    strides = [t - s for t, s in pairwise(times)]
    assert min(strides) >= 1
    assert max(strides) - min(strides) <= 1


def test_vpsde_diffpure() -> None:
    path = Grid(0.1).path(SDE)
    assert len(path.pairs) == 100
    assert path.times[0] == 0.1
    assert path.times[-1] == 1e-5
    for t, s in path.pairs:
        assert t - s == pytest.approx((0.1 - 1e-5) / 100, rel=1e-9)


def test_vpsde_addt() -> None:
    path = Grid(0.1, convention="addt").path(SDE)
    assert path.times == tuple(i / 1000 for i in range(101, -1, -1))
    assert (path.alpha, path.sigma) == (SDE.alpha(0.101), SDE.sigma(0.101))


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"steps": 1}, (0.1, 1e-5)),
        ({"steps": 2}, (0.1, 0.050005, 1e-5)),
        ({"steps": 1, "convention": "addt"}, (0.101, 0.0505, 0.0)),
        ({"t_star": 0.15, "steps": 3}, (0.15, 0.10000333333333334, 0.05000666666666667, 1e-5)),
        ({"t_star": 0.999, "steps": 1, "convention": "addt"}, (1.0, 0.5, 0.0)),
    ],
)
def test_vpsde_steps(settings: dict[str, Any], times: tuple[float, ...]) -> None:
    assert Grid(**settings).path(SDE).times == pytest.approx(times, rel=1e-15, abs=0)


def test_vpsde_noises_at_the_discrete_index_of_its_own_betas() -> None:
    schedule = VPSDE(0.2, 10.0)
    path = Grid(0.25, 4).path(schedule)
    assert path.alpha == schedule.discrete().alpha(249)


@pytest.mark.parametrize("steps", [1, 7, 100, 997])
def test_labels_tell_all_times_apart(steps: int) -> None:
    times = Grid(1.0, steps).path(SDE).times[:-1]
    assert len({label_of(t) for t in times}) == steps
    assert label_of(42) == 42


def test_coarse_grids_share_times_and_so_noise() -> None:
    fine, coarse = (Grid(0.1, n).path(SDE).times for n in (20, 5))
    assert {label_of(t) for t in coarse} <= {label_of(t) for t in fine}


@pytest.mark.parametrize(
    ("settings", "schedule", "message"),
    [
        ({"t_star": 0.0}, LINEAR, r"t_star must lie in \(0, 1\].* got 0.0"),
        ({"t_star": 1.1}, LINEAR, r"t_star must lie in \(0, 1\]"),
        ({"t_star": 100}, LINEAR, r"t_star must lie in \(0, 1\].* got 100"),
        ({"t_star": float("nan")}, LINEAR, "t_star must lie"),
        ({"steps": 0}, LINEAR, "steps must be at least 1; got 0"),
        ({"convention": "DiffPure"}, LINEAR, "one of diffpure, addt, adbm; got 'DiffPure'"),
        ({"steps": 101}, LINEAR, "steps must be at most 100.* got 101"),
        ({"steps": 3, "convention": "addt"}, LINEAR, "steps that divide 100"),
        ({"t_star": 1.0, "convention": "addt"}, LINEAR, "t_star below 1"),
        ({"convention": "adbm"}, SDE, "adbm convention needs a discrete schedule"),
    ],
)
def test_errors(settings: dict[str, Any], schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**settings).path(schedule)


def test_t_star_below_the_first_index_is_named() -> None:
    with pytest.raises(ValueError, match=r"^t_star"):
        Grid(0.1).path(VPDiscrete.linear(4))
