"""What the gradient check costs on long chains, and networks that run in float32 alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import DDPM, Straight
from depure.evaluation import verify_gradient
from depure.evaluation.memory import peak_bytes
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity, Purifier


class Step(nn.Module):
    """One smooth step; counts the rows that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x + 0.02 * torch.tanh(self.conv(x))


class Loop(Purifier):
    """A step, many times."""

    stages = ()

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.step, self.steps = Step(), steps

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        for _ in range(self.steps):
            x = self.step(x)
        return x


class Narrow(nn.Module):
    """Casts a time embedding to float32 and adds it in a layer that stays float32."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3)
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or self.conv.weight.dtype != torch.float32:
            raise RuntimeError("expected scalar type Double but found Float")
        time = torch.arange(4, dtype=torch.float32).sin().view(1, 4, 1, 1)
        z = torch.tanh(self.conv(x) + time)
        z = self.sign * z + (1 - self.sign) * z.detach()  # the same value, whatever the sign
        return self.head(z.flatten(1))


class Head(nn.Module):
    """Three smooth logits."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        return torch.stack([z.mean(1), z.sin().sum(1), (z * z).sum(1)], 1)


def defence(steps: int, size: int) -> Defended:
    torch.manual_seed(0)
    return Defended(Loop(steps), nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 4)))


def pictures(size: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 1])


@pytest.mark.parametrize(("steps", "size"), [(25, 8), (50, 4), (100, 6)])
@pytest.mark.parametrize(
    ("chunk", "short"), [(1, False), (2, False), (3, False), (4, False), (16, False), (16, True)]
)
def test_a_long_chain_costs_at_most_four_gradients(steps, size, chunk, short, monkeypatch):
    """Rows forward through the network are counted, a gradient's as one each."""
    model = defence(steps, size)
    counted: list[int] = []
    plain = Step.forward

    def counting(self, x):
        counted.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(Step, "forward", counting)
    found = verify_gradient(model, *pictures(size), chunk=chunk, short=short)
    assert found.passed, found.verdict
    assert sum(counted) <= 4 * chunk * steps
    assert f"at {found.points} point" in found.verdict


@pytest.mark.parametrize("chunk", [1, 2, 4, 16])
def test_it_takes_no_more_memory_than_the_gradient_of_a_chunk(chunk):
    model, (x, y) = defence(25, 16), pictures(16)
    rows = x[torch.arange(chunk) % 2].clone().requires_grad_()

    def attack():
        return torch.autograd.grad(model(rows, Noise.of(0, range(chunk))).sum(), rows)

    weights = sum(p.numel() for p in model.parameters())
    copied = 8 * weights  # in float64
    images = 40 * 8 * chunk * x[0].numel()  # the points themselves
    used = peak_bytes(lambda: verify_gradient(model, x, y, chunk=chunk))
    assert used <= peak_bytes(attack) + 2 * copied + images


@pytest.mark.parametrize("chunk", [1, 2, 4, 32])
@pytest.mark.parametrize("steps", [1, 25])
def test_a_network_that_runs_in_float32_alone_is_judged_in_it(chunk, steps):
    model = Defended(Loop(steps), Narrow())
    found = verify_gradient(model, *pictures(8), chunk=chunk)
    assert found.passed, found.verdict
    assert found.arithmetic == "float32"
    assert "dropout of 1e-3 cannot be seen" in found.verdict


@pytest.mark.parametrize("chunk", [1, 2, 4, 32])
@pytest.mark.parametrize("steps", [1, 25])
def test_a_wrong_sign_is_seen_in_float32_alone(chunk, steps):
    found = verify_gradient(Defended(Loop(steps), Narrow(-1.0)), *pictures(8), chunk=chunk)
    assert not found.passed
    assert "disagree" in found.verdict


def test_progress_ends_at_one_and_never_falls():
    seen: list[float] = []
    verify_gradient(Defended(Identity(), Narrow()), *pictures(8), progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] <= 1


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_an_approximate_gradient_is_never_compared_with_itself(chunk, make_denoiser):
    purifier = DiffPure(make_denoiser(), DDPM(), t_star=0.03, backprop=Straight())
    model = Defended(purifier, Head())
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = verify_gradient(model, x, torch.tensor([0, 1]), chunk=chunk)
    assert not found.passed
    assert found.rows[0].cosine < 0.999
