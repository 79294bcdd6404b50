from __future__ import annotations

import pytest
import torch
from torch import Tensor

from depure.diffusion.schedule import VPDiscrete, table
from depure.training import denoising_loss, diffuse

ALPHA_BAR = table(VPDiscrete.linear(), torch.zeros(()))


def draw(b: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(b, 1, 4, 4, generator=generator) - 1
    t = torch.randint(1000, (b,), generator=generator)
    return x0, t, torch.randn(x0.shape, generator=generator)


def test_linear_schedule_known_values() -> None:
    assert ALPHA_BAR.shape == (1000,)
    assert ALPHA_BAR.dtype == torch.float32
    assert float(ALPHA_BAR[0]) == pytest.approx(1 - 1e-4, rel=1e-6)
    # reference: product over python floats
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + i * (0.02 - 1e-4) / 999)
        if i == 100:
            assert float(ALPHA_BAR[100]) == pytest.approx(product, rel=1e-6)
            assert product == pytest.approx(0.8951, abs=1e-4)
    assert float(ALPHA_BAR[999]) == pytest.approx(product, rel=1e-5)


def test_the_exact_denoiser_has_no_loss() -> None:
    x0, t, eps = draw()

    def exact(x_t: Tensor, t: Tensor) -> Tensor:
        a = ALPHA_BAR[t].view(-1, 1, 1, 1)
        return (x_t - a.sqrt() * x0) / (1 - a).sqrt()

    assert float(denoising_loss(exact, x0, t, eps, ALPHA_BAR)) == pytest.approx(0.0, abs=1e-8)


def test_loss_is_the_mean_over_images_and_pixels() -> None:
    x0, t, eps = draw()
    loss = denoising_loss(lambda x, t: torch.zeros_like(x), x0, t, eps, ALPHA_BAR)
    assert float(loss) == pytest.approx(float(eps.square().sum()) / eps.numel(), rel=1e-6)


def test_each_image_gets_its_own_time() -> None:
    x0, t, eps = draw()
    together = diffuse(x0, t, eps, ALPHA_BAR)
    for i in range(len(x0)):
        a = float(ALPHA_BAR[t[i]])
        torch.testing.assert_close(together[i], a**0.5 * x0[i] + (1 - a) ** 0.5 * eps[i])


def test_dtype_is_that_of_the_images() -> None:
    x0, t, eps = draw()
    assert diffuse(x0, t, eps, ALPHA_BAR.double()).dtype == torch.float32
    assert diffuse(x0.double(), t, eps.double(), ALPHA_BAR).dtype == torch.float64


def test_gradient_reaches_the_weights() -> None:
    x0, t, eps = draw()
    weight = torch.tensor(0.3, requires_grad=True)
    loss = denoising_loss(lambda x, t: weight * x, x0, t, eps, ALPHA_BAR)
    (gradient,) = torch.autograd.grad(loss, weight)
    x_t = diffuse(x0, t, eps, ALPHA_BAR)
    assert float(gradient) == pytest.approx(float((2 * (0.3 * x_t - eps) * x_t).mean()), rel=1e-5)


def test_shapes_that_would_broadcast_are_refused() -> None:
    x0, t, eps = draw()
    with pytest.raises(ValueError, match="noise of the same shape and one time for each image"):
        denoising_loss(lambda x, t: x, x0, t, eps[:1], ALPHA_BAR)
    with pytest.raises(ValueError, match="one time for each image"):
        denoising_loss(lambda x, t: x, x0, t[:1], eps, ALPHA_BAR)
    with pytest.raises(ValueError, match=r"must predict noise of shape \(6, 1, 4, 4\)"):
        denoising_loss(lambda x, t: x.repeat(1, 2, 1, 1), x0, t, eps, ALPHA_BAR)
