"""EoT gradients against a naive loop over images and draws."""

import pytest
import torch
from torch import nn

from depure.attacks import LOSSES, expected_grad
from depure.noise import Noise
from depure.rows import Chunk, chunked


class Noisy(nn.Module):
    """A nonlinear model whose logits depend on keyed noise."""

    stages = ("a", "b")

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = torch.randn(4, 12, generator=g, dtype=torch.float64)

    def forward(self, x, noise):
        z = noise.normal("a", 0, x) + 0.5 * noise.normal("b", 3, x)
        return torch.tanh((x + 0.3 * z).flatten(1)) @ self.w.T


MODEL = Noisy()
X = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0])
NOISE = Noise.of(3, range(5))


def naive(loss, average, draws, noise=NOISE):
    """One image and one draw at a time."""
    grads, losses, accuracies = [], [], []
    for i in range(len(X)):
        leaf = X[i : i + 1].clone().requires_grad_()
        rows = noise[i : i + 1].draws(draws)
        logits = torch.cat([MODEL(leaf, rows[j : j + 1]) for j in range(draws)])
        y = Y[i].expand(draws)
        if average == "gradients":
            value = loss(logits, y).mean()
        else:
            value = loss(logits.mean(0, keepdim=True), y[:1]).sum()
        grads.append(torch.autograd.grad(value, leaf)[0])
        losses.append(value.detach())
        accuracies.append((logits.argmax(1) == y).double().mean())
    return torch.cat(grads), torch.stack(losses), torch.stack(accuracies)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("average", ["gradients", "logits"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_equals_the_naive_loop_whatever_the_chunk(name, average, chunk):
    with chunked(Chunk(chunk)):
        found = expected_grad(MODEL, X, Y, LOSSES[name], NOISE, 4, average=average)
    grad, loss, accuracy = naive(LOSSES[name], average, 4)
    torch.testing.assert_close(found.grad, grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.loss, loss, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.accuracy, accuracy)


def test_averaging_logits_is_another_attack():
    a, b = (expected_grad(MODEL, X, Y, LOSSES["ce"], NOISE, 4, average=k) for k in AVERAGES)
    assert not torch.allclose(a.grad, b.grad)


AVERAGES = ("gradients", "logits")


def test_one_draw_when_everything_is_known():
    calls = []
    noise = NOISE.lock("a", "b")

    class Counting(Noisy):
        def forward(self, x, noise):
            calls.append(len(x))
            return super().forward(x, noise)

    many = expected_grad(Counting(), X, Y, LOSSES["ce"], noise, 50)
    assert sum(calls) == len(X)
    one = expected_grad(MODEL, X, Y, LOSSES["ce"], noise.fold("other"), 1)
    assert torch.equal(many.grad, one.grad)
    partly = expected_grad(MODEL, X, Y, LOSSES["ce"], NOISE.lock("a"), 50)
    assert not torch.allclose(partly.grad, many.grad)


def test_non_finite_gradients_stay_with_their_image():
    def loss(logits, y):
        value = LOSSES["ce"](logits, y)
        bad = torch.where(y == 2, torch.inf, 1.0)
        return value * bad

    found = expected_grad(MODEL, X, Y, loss, NOISE, 4)
    assert found.finite.tolist() == [True, True, False, True, True]
    assert not found.grad[2].any()
    clean = expected_grad(MODEL, X, Y, LOSSES["ce"], NOISE, 4)
    torch.testing.assert_close(found.grad[3], clean.grad[3])


def test_a_model_without_a_graph_is_refused():
    class Cut(Noisy):
        def forward(self, x, noise):
            with torch.no_grad():
                return super().forward(x, noise)

    with pytest.raises(ValueError, match="Straight"):
        expected_grad(Cut(), X, Y, LOSSES["ce"], NOISE, 4)
