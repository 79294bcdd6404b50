"""Constructions whose gradient is wrong or right, and what the check must say of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.data import digits
from depure.defences import Defended
from depure.evaluation import verify_gradient
from depure.purifiers import Identity

Forward = Callable[[Tensor], Tensor]
G = torch.Generator().manual_seed(3)
A = torch.randn(192, 192, generator=G, dtype=torch.float64) / 14
W = torch.randn(192, 5, generator=G, dtype=torch.float64) / 14
K = torch.randn(6, 3, 3, 3, generator=G, dtype=torch.float64) / 3


class Pull(torch.autograd.Function):
    """The identity, whose gradient goes through a function of (gradient, input)."""

    @staticmethod
    def forward(ctx, x, how):
        ctx.save_for_backward(x)
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.how(grad, ctx.saved_tensors[0]), None


def pulled(how):
    return lambda x: head(Pull.apply(x, how))


def head(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ A.to(x)) @ W.to(x)


def pooled(x: Tensor) -> Tensor:
    z = functional.max_pool2d(functional.conv2d(x, K.to(x), padding=1).relu(), 2)
    return z.flatten(1)[:, :96] @ W.to(x)[:96]


def last_only(x: Tensor) -> Tensor:
    """Four steps with the value of all and the gradient of the last."""
    z = x
    for _ in range(3):
        z = z + 0.1 * torch.sin(3 * z)
    z = x + (z - x).detach()
    return z + 0.1 * torch.sin(3 * z)


def median(x: Tensor) -> Tensor:
    patches = functional.unfold(functional.pad(x, (1,) * 4, mode="reflect"), 3)
    return patches.view(len(x), 3, 9, -1).median(2).values.view_as(x)


def off_grid(grad: Tensor, x: Tensor) -> Tensor:
    on = ((x * 255 - (x * 255).round()).abs() < 1e-4).all(dim=(1, 2, 3))
    return grad * on.view(-1, 1, 1, 1)


def channel(grad: Tensor, x: Tensor) -> Tensor:
    return grad * torch.tensor([1.0, -1.0, 1.0]).to(grad).view(1, 3, 1, 1)


def half(grad: Tensor, x: Tensor) -> Tensor:
    grad = grad.clone()
    grad[..., :4] = 0
    return grad


def quantised(x: Tensor) -> Tensor:
    return x + ((x * 16).round() / 16 - x).detach()


def clamped(x: Tensor) -> Tensor:
    return x + (x.clamp(0.3, 0.6) - x).detach()


def embedded(x: Tensor) -> Tensor:
    t = torch.sin(torch.arange(192, dtype=torch.float32))
    return head(x + 0.1 * t.view(1, 3, 8, 8))


WRONG: dict[str, Forward] = {
    "one path of two detached": lambda x: head(0.5 * x.sin() + 0.5 * (2 * x).sin().detach()),
    "scale 1.00002": pulled(lambda g, x: g * 1.00002),
    "scale 2": pulled(lambda g, x: g * 2),
    "last step only": lambda x: head(last_only(x)),
    "rounded": lambda x: head((x * 255).round() / 255),
    "rounded, straight through": lambda x: head(quantised(x)),
    "dropout 1e-3": lambda x: head(functional.dropout(x, 1e-3, training=True)),
    "dropout 0.1": lambda x: head(functional.dropout(x, 0.1, training=True)),
    "sign in float32": pulled(lambda g, x: -g if g.dtype == torch.float32 else g),
    "zero in float32": pulled(lambda g, x: g * 0 if g.dtype == torch.float32 else g),
    "zero for batches above 2": pulled(lambda g, x: g * (len(g) <= 2)),
    "zero off the grid": pulled(off_grid),
    "zero": pulled(lambda g, x: g * 0),
    "not finite": pulled(lambda g, x: g / 0),
    "no graph": lambda x: head(x.detach()),
    "noise of its own": lambda x: head(x + 0.05 * torch.randn_like(x)),
    "sign": pulled(lambda g, x: -g),
    "sign of one channel": pulled(channel),
    "rows permuted": pulled(lambda g, x: g.roll(1, 0)),
    "clamp, straight through": lambda x: head(clamped(x)),
    "half of the pixels": pulled(half),
    "its sign": pulled(lambda g, x: g.sign()),
    "normalised": pulled(lambda g, x: g / g.norm()),
}
RIGHT: dict[str, Forward] = {
    "smooth": head,
    "max-pool": pooled,
    "median filter": lambda x: head(median(x)),
    "float32 cast": lambda x: head(x.float()),
    "margins of 40": lambda x: 100 * head(x),
    "clamp first": lambda x: pooled(x.clamp(0, 1)),
    "ReLU first": lambda x: head((x - 0.5).relu()),
    "float32 embedding": embedded,
    "float16 logits": lambda x: head(x).half(),
    "log-sum-exp": lambda x: head(x.logsumexp(1, keepdim=True).expand_as(x)),
    "nearly saturated": lambda x: torch.tanh(4 * head(x)),
    "float32 constant": lambda x: (x.flatten(1) @ A.to(x)).float() @ W.float(),
}


class Net(nn.Module):
    def __init__(self, rule: Forward) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(x)


@pytest.fixture
def pictures() -> Tensor:
    """Images on the grid of 255, with black and white areas."""
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (((x * 1.6 - 0.3).clamp(0, 1) * 255).round() / 255).float()


def check(rule: Forward, x: Tensor):
    torch.manual_seed(0)
    return verify_gradient(Defended(Identity(), Net(rule)), x, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_gradients_fail(name, pictures):
    found = check(WRONG[name], pictures)
    assert not found.passed, found.verdict


@pytest.mark.parametrize("name", RIGHT)
def test_right_gradients_pass(name, pictures):
    found = check(RIGHT[name], pictures)
    assert found.passed, found.verdict
    assert found.arithmetic in found.verdict


def test_a_trained_network_with_kinks_at_clean_pixels_passes():
    images = digits("train")[slice(0, 800)]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(images.x.shape[1], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        rows = torch.randint(0, len(images), (64,))
        optimiser.zero_grad()
        functional.cross_entropy(net(images.x[rows]), images.y[rows]).backward()
        optimiser.step()
    test = digits("test")[slice(0, 40)]
    model = Defended(Identity(), net.eval())
    for k in range(0, 40, 2):
        found = verify_gradient(model, test.x[k : k + 2], test.y[k : k + 2])
        assert found.passed, found.verdict
