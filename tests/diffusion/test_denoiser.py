"""One answer whatever the network predicts, and a network that cannot leave eval mode."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import VPSDE, Denoiser, Schedule, VPDiscrete

LINEAR, SDE = VPDiscrete.linear(), VPSDE()
CASES = [(LINEAR, 0), (LINEAR, 99), (LINEAR, 999), (SDE, 0.001), (SDE, 0.1), (SDE, 1.0)]


class As(nn.Module):
    """The eps network `base`, made to predict something else at one time."""

    def __init__(self, base: nn.Module, alpha: float, sigma: float, prediction: str) -> None:
        super().__init__()
        self.base, self.alpha, self.sigma, self.prediction = base, alpha, sigma, prediction

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        eps = self.base(x, labels)
        x0 = (x - self.sigma * eps) / self.alpha
        return {"epsilon": eps, "x0": x0, "v": self.alpha * eps - self.sigma * x0}[self.prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize(("schedule", "t"), CASES)
def test_predictions_agree(
    make_net: Callable[..., nn.Module], schedule: Schedule, t: float, prediction: Any
) -> None:
    net = make_net().eval()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    estimate = Denoiser(As(net, alpha, sigma, prediction), schedule, prediction)(x, t)
    eps = net(x, torch.full((2,), t if schedule is LINEAR else 999 * t, dtype=x.dtype))
    torch.testing.assert_close(estimate.eps, eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.x0, (x - sigma * eps) / alpha, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x)


@pytest.mark.parametrize(
    ("schedule", "t", "label", "dtype"),
    [
        (LINEAR, 99, 99, torch.int64),
        (SDE, 0.1, 99.9, torch.float64),
        (VPSDE(label_scale=1000.0), 0.25, 250.0, torch.float64),
    ],
)
def test_labels(schedule: Schedule, t: float, label: float, dtype: torch.dtype) -> None:
    class Look(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            assert labels.dtype == dtype
            assert labels.tolist() == pytest.approx([label] * 3)
            return x

    Denoiser(Look(), schedule)(torch.zeros(3, 1, 2, 2, dtype=torch.float64), t)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: out,
        lambda out: (out, "more"),
        lambda out: SimpleNamespace(sample=out),
        lambda out: torch.cat([out, torch.full_like(out, 9.0)], 1),
        lambda out: SimpleNamespace(sample=torch.cat([out, out + 1.0], 1)),
    ],
    ids=["tensor", "tuple", "sample", "learned variance", "sample with variance"],
)
def test_outputs_understood(make_net: Callable[..., nn.Module], wrap: Any) -> None:
    net = make_net()

    class Wrapped(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            return wrap(net(x, labels))

    net.eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    eps = Denoiser(Wrapped(), LINEAR)(x, 50).eps
    assert torch.equal(eps, net(x, torch.tensor([50, 50])))


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 3, 4, 4), (3, 3, 8, 8), (2, 3, 8, 8, 1)])
def test_shape_error(shape: tuple[int, ...]) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return torch.zeros(shape)

    with pytest.raises(ValueError, match=r"returned shape .* must keep the shape"):
        Denoiser(Wrong(), LINEAR)(torch.zeros(2, 3, 8, 8), 5)


def test_frozen_and_in_eval_mode(make_net: Callable[..., nn.Module]) -> None:
    net = make_net().train()
    denoiser = Denoiser(net, LINEAR)
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not any(part.training for part in denoiser.modules())
    assert denoiser.network is net
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(denoiser(x, 5).eps, denoiser(x, 5).eps)  # no dropout


def test_freeze_false_leaves_the_weights(make_net: Callable[..., nn.Module]) -> None:
    denoiser = Denoiser(make_net(), LINEAR, freeze=False)
    assert all(p.requires_grad for p in denoiser.parameters())
    assert not any(part.training for part in denoiser.modules())


def test_train_is_refused(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    for act in (denoiser.train, lambda: nn.Sequential(denoiser).train()):
        with pytest.raises(ValueError, match="stays in eval mode"):
            act()
        assert not any(part.training for part in denoiser.modules())
    assert denoiser.eval() is denoiser
    assert denoiser.train(False) is denoiser


def test_moves_and_saves_like_any_module(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    state = denoiser.state_dict()
    assert all(name.startswith("network.") for name in state)
    other = make_denoiser(seed=1).to(torch.float32)
    other.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        other(x, 9).eps.double(), denoiser(x.double(), 9).eps, atol=1e-5, rtol=1e-4
    )


def test_unknown_prediction(make_net: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="one of epsilon, x0, v; got 'sample'"):
        Denoiser(make_net(), LINEAR, "sample")  # type: ignore[arg-type]


def test_signature(make_denoiser: Callable[..., Denoiser]) -> None:
    assert make_denoiser(prediction="v").signature() == (
        "TinyNet(467 weights, v, "
        "VPDiscrete(T=1000, betas=0.0001..0.02, middle alpha_bar=0.077796658))"
    )


def test_a_network_that_cannot_run_with_its_settings_is_named():
    class Misled(torch.nn.Module):
        scale = "2"

        def forward(self, x, t):
            return x / self.scale

    denoiser = Denoiser(Misled(), VPDiscrete.linear())
    with pytest.raises(ValueError, match="Misled does not run on images of shape"):
        denoiser(torch.zeros(1, 1, 4, 4), 3)
