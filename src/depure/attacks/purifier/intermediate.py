"""Attacks on what a purification passes through: DiffAttack, and a loss at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from depure.attacks.asking.losses import Loss
from depure.attacks.asking.model import Traced, WithTerm
from depure.attacks.base import Attack, TraceOf, Watch
from depure.attacks.case import Case
from depure.attacks.gradient.diffhammer import DiffHammer
from depure.attacks.gradient.pgd import PGD
from depure.attacks.settings import check_count, check_weight
from depure.noise import Noise
from depure.threat.balls import Ball
from depure.types import Waypoint


class _IntermediateLoss(Attack):
    """An attack by gradients whose loss has a term of the states in between."""

    attack: Attack
    weight: float
    balanced: bool

    @property
    def trace_of(self) -> TraceOf:
        """That of the attack."""
        return self.attack.trace_of

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those of the attack."""
        return self.attack.balls

    def trace_length(self, case: Case) -> int:
        """That of the attack."""
        return self.attack.trace_length(case)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """The attack's adversarial images (B, C, H, W); losses that the watch hears have the term.

        Raises:
            ValueError: if the defence shows no states or has no gradients of them, or if the
                attack never asks for a gradient.
        """
        name, model = type(self).__name__, case.model
        if not isinstance(model, Traced):
            raise ValueError(
                f"{name} needs a defence that shows the states it passes through, such as a "
                f"Defended(DiffPure(...), classifier); got a {type(model).__name__}: take "
                f"{self.attack!r} itself"
            )
        joined = WithTerm(model, partial(self._measured, model))
        x_adv = self.attack(joined, case.x, case.y, case.ball, case.noise, watch=watch)
        if not joined.used:
            raise ValueError(
                f"{name} adds to a loss whose gradient is followed, but {self.attack!r} asked for "
                f"no gradient of the defence: give it an attack that does, such as PGD or APGD"
            )
        return x_adv

    def _measured(
        self, model: Traced, x: Tensor, noise: Noise, y: Tensor, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        logits, points = model.trace(x, noise)
        term = self.weight * self._term(model, points, y, loss)
        if self.balanced:
            term = _steepness(logits, y, loss) * term
            term = term - term.detach()  # zero in value, so that only its gradient counts
        return logits, term

    @abstractmethod
    def _term(self, model: Traced, points: Sequence[Waypoint], y: Tensor, loss: Loss) -> Tensor:
        """What is to be raised beside the loss, (B,)."""

    def _check(self) -> None:
        inner = self.attack
        if not isinstance(inner, Attack) or isinstance(inner, _IntermediateLoss | DiffHammer):
            raise ValueError(
                f"attack must be an attack that follows the gradient of a loss, such as PGD or "
                f"APGD; got {inner!r}"
            )
        check_weight("weight", self.weight)


def _steepness(logits: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Norm (B,) of the loss's derivative by the logits (B, K), a constant."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(leaf, y).sum(), leaf)
    steepness: Tensor = slope.norm(dim=1)
    return steepness


@dataclass(frozen=True)
class DiffAttack(_IntermediateLoss):
    """DiffAttack (Kang et al., 2311.16124): also drive the reverse process off the forward one.

    The objective is `L_cls + weight * L_dev` (eq. 11): the loss of the inner attack, and the
    deviated reconstruction (eq. 8), the distance between a state x'_t of the reverse process and
    its counterpart x_t of the forward process, averaged over the steps. Both are means over the
    same draws. There L_cls is the cross-entropy, then the DLR loss, the attack is AutoAttack's
    APGD of 100 steps with EoT 20, the weight is 1, and alpha(t) is one over the number of steps
    (appendix D.2): `DiffAttack(APGD(eot=20), balanced=False)`. Its gradient is that of any exact
    `backprop`, of which the paper's segment-wise algorithm is one.

    As published it is weaker than its inner attack where the classifier is sure of itself: the
    cross-entropy's gradient vanishes there, the term's does not and takes over, and the attack
    keeps what deviates most. `balanced`, our default, weighs the term of every draw by the norm of
    the loss's derivative by the logits, so that both grow and vanish together, and lets it guide
    steps only: what is best is judged by the loss alone.

    The paper leaves open, and is settled here so:

    - The distance is the mean square over pixels, in units of [-1, 1] images, as in the programs
      of DiffBreak and DiffHammer (there with half of alpha_bar(t) in front).
    - x_t is the round's image noised straight to t with the forward noise of the round, so that
      both processes share a draw; the final image is compared with the round's image itself.
    - The gradient goes through x_t too, as eq. 8 is written and as in DiffHammer; DiffBreak takes
      it for a constant, `detach=True`.
    - "Uniformly sampled" steps are evenly spaced ones, `every`; all of them are at hand anyway.

    It costs the network calls of the inner attack, and is not shown to be stronger than that.

    Args:
        attack: which attack raises the objective; any that follows gradients of a loss.
        weight: of the deviated reconstruction (lambda); 0 leaves the inner attack.
        balanced: the term follows the size of the loss's gradient; False is as published.
        detach: take the forward side for a constant.
        every: compare at every `every`-th step only, counted back from the end of the chain.

    Raises:
        ValueError: a setting is out of range; at the call, see there.

    Example:
        >>> DiffAttack(PGD(steps=20, eot=5), detach=True)  # doctest: +ELLIPSIS
        DiffAttack(attack=PGD(steps=20, ...), weight=1.0, balanced=True, detach=True, every=1)
    """

    attack: Attack = field(default_factory=PGD)
    weight: float = 1.0
    balanced: bool = True
    detach: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        self._check()
        check_count("every", self.every)

    def _term(self, model: Traced, points: Sequence[Waypoint], y: Tensor, loss: Loss) -> Tensor:
        return deviation(points[::-1][:: self.every], self.detach)


def deviation(points: Sequence[Waypoint], detach: bool = False) -> Tensor:
    """Mean squared distance (B,) of reverse and forward states over pixels and steps (eq. 8).

    Args:
        points: at least one; states are scaled as images are, the distance is in [-1, 1] units.
        detach: take the forward states for constants.
    """
    total = points[0].state.new_zeros(len(points[0].state))
    for point in points:
        noised = point.noised.detach() if detach else point.noised
        total = total + (2.0 * (point.state - noised)).square().flatten(1).mean(1)
    return total / len(points)


@dataclass(frozen=True)
class FullIntermediate(_IntermediateLoss):
    """A loss of the classifier at every step's state: DiffBreak's mode "full_intermediate".

    As in its code (2411.16598): the classifier sees the noisy state x_t, scaled as an image; a
    state with n reverse steps to come in its round, and m rounds after it, weighs
    `(n + 1) ** -power * (m + 1) ** -round_power`, the end weighs 1. There the weights are scaled
    to sum 1, which a step of fixed norm undoes; here they are not. DiffAttack's authors advise
    against such losses (2311.16124, section 3.2): the classifier was not made for noise. Our
    default is `balanced`, as in `DiffAttack`.

    It costs the network calls of the inner attack, and two forward passes of the classifier a
    step, as each is recomputed going back to bound memory.

    Args:
        attack: which attack raises the objective; any that follows gradients of a loss.
        weight: of all states but the end; 0 leaves the inner attack.
        balanced: the term follows the size of the loss's gradient; False is as published.
        power: how fast weights fall with the steps to come.
        round_power: how fast they fall with the rounds to come.

    Raises:
        ValueError: a setting is out of range; at the call, see there.

    Example:
        >>> FullIntermediate(PGD(steps=20, eot=5))  # doctest: +ELLIPSIS
        FullIntermediate(attack=PGD(steps=20, ...), weight=1.0, balanced=True, power=0.5, ...)
    """

    attack: Attack = field(default_factory=PGD)
    weight: float = 1.0
    balanced: bool = True
    power: float = 0.5
    round_power: float = 0.25

    def __post_init__(self) -> None:
        self._check()
        check_weight("power", self.power)
        check_weight("round_power", self.round_power)

    def _term(self, model: Traced, points: Sequence[Waypoint], y: Tensor, loss: Loss) -> Tensor:
        def raised(state: Tensor) -> Tensor:
            return loss(model.classifier(state), y)

        total = points[0].state.new_zeros(len(y))
        for p in points[:-1]:  # the last has the attack's own loss
            share = (p.steps_left + 1) ** -self.power * (p.rounds_left + 1) ** -self.round_power
            at: Tensor = checkpoint(raised, p.state, use_reentrant=False)
            total = total + share * at
        return total
