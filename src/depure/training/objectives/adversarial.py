"""Adversarial training of classifiers: the rival defence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.data.images import Images
from depure.noise import Noise
from depure.threat import Norm
from depure.training.loop import check_positive
from depure.training.objectives.base import Objective
from depure.training.objectives.classification import logits_of
from depure.training.objectives.guide import frozen

PerImageLoss = Callable[[Tensor], Tensor]
"""Logits `(B, K)` to the losses `(B,)` that an inner attack raises."""


@dataclass(frozen=True)
class PGDTraining(Objective):
    """PGD-AT (Madry et al., 1706.06083): cross-entropy on the attacked images alone.

    The attack starts at a random point of the ball and sees the network in eval mode, so that
    batch statistics are those of the images it trains on.

    Args:
        ball: what the attack may change.
        steps: its iterations.
        step_size: norm of one; None takes the ball's default.

    Raises:
        ValueError: a setting is not above zero.
    """

    ball: Norm
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.step_size)

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """Cross-entropy of the attacked images."""
        start = self.ball.start(batch.x, noise.fold("start"))
        x_adv = _climb(
            network, batch.x, start, self.ball, self.steps, self.step_size,
            lambda z: functional.cross_entropy(z, batch.y, reduction="none"),
        )  # fmt: skip
        return functional.cross_entropy(logits_of(network, x_adv, batch.y), batch.y)


@dataclass(frozen=True)
class TRADES(Objective):
    """TRADES (Zhang et al., 1901.08573, equation 5): accuracy plus agreement in the ball.

    `CE(f(x), y) + beta KL(f(x) || f(x_adv))`, where x_adv raises that divergence from a start
    beside x (a normal number of deviation 0.001 on each pixel), the network in eval mode.

    Args:
        ball: what the attack may change.
        beta: weight of the agreement (the paper's 1 / lambda; 6 as published).
        steps, step_size: as in `PGDTraining`.

    Raises:
        ValueError: a setting is not above zero.
    """

    ball: Norm
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.step_size)
        check_positive(beta=self.beta)

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The regularised cross-entropy."""
        x, y = batch.x, batch.y
        with torch.no_grad(), mode(network, training=False):
            clean = logits_of(network, x, y).log_softmax(1)
        start = self.ball.project(x + 1e-3 * noise.fold("start").normal("start", 0, x), x)
        x_adv = _climb(
            network, x, start, self.ball, self.steps, self.step_size,
            lambda z: divergence(clean, z.log_softmax(1)),
        )  # fmt: skip
        logits = logits_of(network, x, y)
        gap = divergence(logits.log_softmax(1), logits_of(network, x_adv, y).log_softmax(1))
        return functional.cross_entropy(logits, y) + self.beta * gap.mean()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q)` of each row, `(B, K)` log-probabilities to `(B,)`."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Every part of the network in one mode inside the block, and in its own again afterwards."""
    before = {part: part.training for part in network.modules()}
    try:
        network.train(training)
        yield
    finally:
        for part, was in before.items():
            part.training = was


def _climb(
    network: nn.Module,
    x: Tensor,
    start: Tensor,
    ball: Norm,
    steps: int,
    step_size: float | None,
    losses: PerImageLoss,
) -> Tensor:
    """Projected gradient ascent from `start`; no gradient of a weight is computed."""
    size, x_adv = ball.default_step if step_size is None else step_size, start
    with mode(network, training=False), frozen(network), torch.enable_grad():
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(losses(network(leaf)).sum(), leaf)
            x_adv = ball.project(leaf.detach() + size * ball.ascend(grad), x)
    return x_adv


def _check(steps: int, step_size: float | None) -> None:
    check_positive(steps=steps, step_size=1.0 if step_size is None else step_size)
