"""EDM's schedule, grid and preconditioned denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import DDIM, VPSDE, Denoiser, Grid, Karras, VPDiscrete
from depure.diffusion.schedules import label_of
from depure.training.process import EDMProcess

MakeNet = Callable[..., nn.Module]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LEVELS = [1e-4, 0.002, 0.0417, 0.5, 3.0, 80.0]


# --- the schedule ------------------------------------------------------------------------------


@pytest.mark.parametrize("t", LEVELS)
def test_the_time_is_the_noise_level(t: float) -> None:
    schedule = Karras()
    assert (schedule.alpha(t), schedule.sigma(t)) == (1.0, t)
    assert math.exp(4 * schedule.label(t)) == pytest.approx(t, rel=1e-14)


def test_clean() -> None:
    assert (Karras().alpha(0), Karras().sigma(0)) == (1.0, 0.0)


def test_values_compare_and_print() -> None:
    assert Karras() == Karras(0.5, 0.002, 80.0, 7.0)
    assert repr(Karras()) == "Karras(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0, rho=7.0)"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Karras(sigma_data=0.0), "sigma_data must be a number above 0; got 0.0"),
        (lambda: Karras(sigma_data=math.inf), "sigma_data must be a number above 0; got inf"),
        (lambda: Karras(rho=-1.0), "rho must be a number above 0; got -1.0"),
        (lambda: Karras(rho=math.nan), "rho must be"),
        (lambda: Karras(sigma_min=0.0), "0 < sigma_min < sigma_max; got 0.0 and 80.0"),
        (lambda: Karras(sigma_max=0.001), "sigma_min < sigma_max; got 0.002 and 0.001"),
        (lambda: Karras(sigma_max=math.inf), "sigma_min < sigma_max"),
        (lambda: Karras().sigma(-0.1), "must be 0 or above; got -0.1"),
        (lambda: Karras().sigma(math.nan), "must be 0 or above; got nan"),
        (lambda: Karras().label(0.0), "noise levels above 0 only; got 0.0"),
    ],
)
def test_schedule_errors(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


# --- the grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 18, 50])
@pytest.mark.parametrize(("top", "end", "rho"), [(0.5, 0.002, 7.0), (2.0, 0.01, 3.0)])
def test_grid_is_equation_5(top: float, end: float, rho: float, steps: int) -> None:
    path = Grid(top, steps).path(Karras(sigma_min=end, rho=rho))
    a, b = top ** (1 / rho), end ** (1 / rho)
    expected = [(a + i / (steps - 1) * (b - a)) ** rho for i in range(steps)]
    assert path.times == pytest.approx((*expected, 0.0), rel=1e-14, abs=0)
    assert (path.times[0], path.times[-2], path.times[-1]) == (top, end, 0.0)  # exactly
    assert (path.alpha, path.sigma) == (1.0, top)
    assert all(t > s for t, s in pairwise(path.times))


@pytest.mark.parametrize(("settings", "count"), [({}, 18), ({"steps": 1}, 1), ({"steps": 7}, 7)])
def test_number_of_steps(settings: dict[str, Any], count: int) -> None:
    assert len(Grid(0.5, **settings).path(Karras()).pairs) == count


def test_one_step_goes_straight_to_the_image() -> None:
    assert Grid(0.5, 1).path(Karras()).times == (0.5, 0.0)


def test_levels_may_exceed_one_and_be_whole_numbers() -> None:
    path = Grid(3, 4).path(Karras())
    assert all(isinstance(t, float) for t in path.times)
    assert Grid(80.0, 4).path(Karras()).times[0] == 80.0


def test_addt_agrees_with_the_default_convention() -> None:
    assert Grid(0.5, 9, "addt").path(Karras()) == Grid(0.5, 9).path(Karras())


@pytest.mark.parametrize("top", [0.1, 0.5, 80.0])
def test_labels_tell_all_levels_apart(top: float) -> None:
    times = Grid(top, 999).path(Karras()).times
    assert len({label_of(t) & 0xFFFFFFFF for t in times}) == 1000


def test_coarse_grids_share_levels_and_so_noise() -> None:
    fine, coarse = (Grid(0.5, n).path(Karras()).times for n in (17, 5))
    assert {label_of(t) for t in coarse} <= {label_of(t) for t in fine}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_star": 0.0}, "t_star must lie in"),
        ({"t_star": math.inf}, "t_star must lie in"),
        ({"t_star": 0.002}, "above sigma_min and at most at sigma_max; got 0.002"),
        (
            {"t_star": 100},
            r"noise level to purify from on Karras\(.* at most at sigma_max; got 100",
        ),
        ({"t_star": 0.5, "convention": "adbm"}, "adbm convention needs a discrete schedule"),
    ],
)
def test_grid_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**settings).path(Karras())


@pytest.mark.parametrize("schedule", [VPDiscrete.linear(), VPSDE()])
def test_other_schedules_still_want_a_fraction(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"t_star must lie in \(0, 1\], a fraction .* got 1.5"):
        Grid(1.5).path(schedule)


# --- the denoiser ------------------------------------------------------------------------------


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("sigma_data", [0.5, 0.31])
def test_denoiser_is_what_training_saw(make_net: MakeNet, sigma_data: float, t: float) -> None:
    net, x = make_net().eval(), max(t, 1.0) * X
    ours = Denoiser(net, Karras(sigma_data), "edm")(x, t)
    times = torch.full((2,), t, dtype=torch.float64)
    single = EDMProcess(sigma_data).denoised(net, x, times)
    for a, b in zip(ours[:2], single[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours.x0 + t * ours.eps, x, rtol=1e-13, atol=1e-13)


def test_network_is_told_scaled_images_and_c_noise() -> None:
    seen: list[Any] = []

    class Look(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            seen.extend((x, labels))
            return x

    Denoiser(Look(), Karras(), "edm")(X, 0.3)
    torch.testing.assert_close(seen[0], X / math.sqrt(0.3**2 + 0.5**2))
    assert seen[1].dtype == X.dtype
    assert seen[1].tolist() == pytest.approx([math.log(0.3) / 4] * 2, rel=1e-14)


def test_eps_does_not_cancel(make_net: MakeNet) -> None:
    """In float32 at the smallest level, (x - x0) / sigma is wrong in the fifth digit."""
    net, t = make_net().eval(), 0.002
    exact = Denoiser(net, Karras(), "edm")(X, t).eps
    x0, eps, _ = Denoiser(make_net(dtype=torch.float32), Karras(), "edm")(X.float(), t)
    assert (eps - exact).abs().max() < 3e-6
    assert ((X.float() - x0) / t - exact).abs().max() > 1e-5


@pytest.mark.parametrize("index", [0, 99, 999])
def test_v_is_that_of_variance_preserving_networks(index: int) -> None:
    """With sigma_data = 1, x / sqrt(1 + sigma^2) is a VP state and -F its v."""

    class Plain(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return torch.sin(3 * x) + 0.2

    linear = VPDiscrete.linear()
    alpha, sigma = linear.alpha(index), linear.sigma(index)
    vp = Denoiser(Plain(), linear, "v")(X, index)
    edm = Denoiser(Plain(), Karras(1.0), "v")(X / alpha, sigma / alpha)
    torch.testing.assert_close(edm, vp, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "sample"])
def test_other_predictions_are_refused(make_net: MakeNet, prediction: Any) -> None:
    with pytest.raises(ValueError, match=f"one of edm, v; got '{prediction}'"):
        Denoiser(make_net(), Karras(), prediction)


def test_the_default_prediction_is_refused(make_net: MakeNet) -> None:
    with pytest.raises(ValueError, match="edm, v; got 'epsilon'"):
        Denoiser(make_net(), Karras())


@pytest.mark.parametrize("schedule", [VPDiscrete.linear(), VPSDE()])
def test_edm_needs_its_schedule(make_net: MakeNet, schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"got 'edm': \"edm\" goes with the schedule Karras"):
        Denoiser(make_net(), schedule, "edm")


def test_no_network_call_at_zero(make_net: MakeNet) -> None:
    with pytest.raises(ValueError, match=r"noise levels above 0 only; got 0.0"):
        DDIM().step(Denoiser(make_net(), Karras(), "edm"), X, 0.0, 0.0, None)


def test_signature(make_net: MakeNet) -> None:
    assert Denoiser(make_net(), Karras(), "edm").signature() == (
        "TinyNet(467 weights, edm, "
        "Karras(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0, rho=7.0))"
    )
