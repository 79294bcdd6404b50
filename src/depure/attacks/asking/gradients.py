"""Expectation over transformation: gradients averaged over draws of the defence's noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.asking.journal import cached
from depure.attacks.asking.losses import Loss, margin, vanished
from depure.attacks.asking.model import Model, WithTerm
from depure.noise import Noise
from depure.rows import means, parts, rows_at_once

Average = Literal["gradients", "logits"]
JUDGE_DRAWS = 20  # at least so many fresh draws choose among proposals (Fixed-AutoAttack's number)


class Expected(NamedTuple):
    """Averages over the draws, per image."""

    grad: Tensor  # (B, C, H, W), of the averaged loss; zero where it was not finite
    loss: Tensor  # (B,), with the further term of a `WithTerm`; NaN if no draw was answered
    accuracy: Tensor  # (B,), share of draws with the right label
    finite: Tensor  # (B,) bool, whether the gradient was finite
    followed: Tensor  # (B,), share of draws that followed the margin, see `expected_grad`
    flat: Tensor  # (B,) bool, whether the gradient was zero in every pixel


def distinct_draws(stages: tuple[str, ...], noise: Noise, draws: int) -> int:
    """1 where all draws would coincide (no randomness, or every stage known), else `draws`."""
    return 1 if all(noise.is_locked(stage) for stage in stages) else draws


def expected_grad(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    noise: Noise,
    draws: int,
    *,
    average: Average = "gradients",
    labels: Tensor | None = None,
) -> Expected:
    """Gradient of a loss in expectation over the noise (EoT; Athalye et al., 1707.07397).

    Images x draws are one long batch, run `rows_at_once` at a time; neither their number nor the
    images beside an image change its result beyond float rounding. An open `journal` records it.

    A row with the right answer whose loss has lost its derivative to rounding (`vanished`)
    follows the gradient of the margin instead: a classifier that is sure of its answers would
    else look robust. The loss itself stays what it is. Draws without a finite answer count as
    fooled, and the averages of loss and gradient leave them out.

    Args:
        model: the defence; a `WithTerm` adds its term, draw by draw, to the loss.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,) handed to the loss.
        loss: per-image loss.
        noise: one row per image; draw j of image i is row j of `noise.draws(draws)`.
        draws: EoT draws per image.
        average: "gradients" of the draws' losses (equal to the gradient of their mean loss), or
            the loss of the mean "logits", which is another attack (foolbox's choice).
        labels: true labels for the accuracy, where y holds targets.
    """
    draws = distinct_draws(model.stages, noise, draws)
    labels = y if labels is None else labels
    if isinstance(model, WithTerm):
        model.used = True
    asked = f"grad {draws} {average} {_name(loss)} {_name(model)}"

    def answer() -> Expected:
        return _expected(model, x, y, loss, noise, draws, average, labels)

    return Expected(*cached(asked, noise, (x, y, labels), answer))


def _expected(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    noise: Noise,
    draws: int,
    average: Average,
    labels: Tensor,
) -> Expected:
    rows = noise.draws(draws) if draws > 1 else noise
    truth = labels.repeat_interleave(draws)
    targets = y.repeat_interleave(draws)
    image = torch.arange(len(x), device=x.device).repeat_interleave(draws)
    blocks = parts(len(image), rows_at_once(x))

    outputs, terms, sure = [], [], []

    def pull(part: slice, objective: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x[image[part]].detach().requires_grad_()
        with torch.enable_grad():  # whatever the mode of who asks
            logits, term = _answer(model, leaf, rows[part], targets[part], loss)
            _require_graph(logits)
            (grad,) = torch.autograd.grad(objective(logits).sum() + term.sum(), leaf)
        outputs.append(logits.detach())
        terms.append(term.detach())
        return grad.masked_fill(~answered(logits.detach()).view(-1, 1, 1, 1), 0.0)

    def steep(logits: Tensor, part: slice) -> Tensor:
        raised, lost = _raised(loss, logits, targets[part], truth[part])
        sure.append(lost)
        return raised

    if average == "gradients":
        grad = means((pull(p, lambda z, p=p: steep(z, p)) for p in blocks), draws)  # type: ignore[misc]
        logits, lost = torch.cat(outputs), torch.cat(sure).view(-1, draws)
        known = answered(logits).view(-1, draws)
        losses = mean_of(loss(logits, targets).view(-1, draws), known)
    else:
        with torch.no_grad():
            logits = torch.cat([model(x[image[p]], rows[p]) for p in blocks])
        known = answered(logits).view(-1, draws)
        cotangent, losses, lost = _of_mean_logits(loss, logits, known, y, labels)
        grad = means((pull(p, lambda z, p=p: z * cotangent[p]) for p in blocks), draws)  # type: ignore[misc]
    losses = losses + mean_of(torch.cat(terms).view(-1, draws), known)
    finite = grad.flatten(1).isfinite().all(1) & known.any(1)
    grad = torch.where(finite.view(-1, 1, 1, 1), grad, 0.0)
    accuracy = _mean(right(logits, truth).to(x.dtype), draws)
    flat = finite & (grad == 0).flatten(1).all(1)
    return Expected(grad, losses, accuracy, finite, lost.to(x.dtype).mean(1), flat)


def _raised(loss: Loss, logits: Tensor, y: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What to differentiate, (B,): the loss, or the margin where its derivative vanished.

    Rows that are wrong already keep the loss: it may be flat there by design, as DLR is where the
    label is third.
    """
    lost = vanished(loss, logits, y) & right(logits.detach(), labels)
    raised = loss(logits, y)
    return (torch.where(lost, margin(logits, labels), raised) if lost.any() else raised), lost


def _name(thing: object) -> str:
    """What kind of loss or model it is, the same in every process."""
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def sampled_logits(model: Model, x: Tensor, noise: Noise, draws: int) -> Tensor:
    """Logits (B, draws, K) without gradients; one draw if all would be the same.

    Draw j of image i is row j of `noise.draws(draws)`; a single draw is that of `noise` itself. An
    open `journal` records them.
    """
    draws = distinct_draws(model.stages, noise, draws)

    def answer() -> tuple[Tensor]:
        rows = noise.draws(draws) if draws > 1 else noise
        image = torch.arange(len(x), device=x.device).repeat_interleave(draws)
        with torch.no_grad():
            found = [model(x[image[p]], rows[p]) for p in parts(len(image), rows_at_once(x))]
        return (torch.cat(found),)

    (logits,) = cached(f"logits {draws} {_name(model)}", noise, (x,), answer)
    return logits.view(len(x), draws, -1)


def _answer(model: Model, x: Tensor, noise: Noise, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Logits, and what is to be added to their loss: nothing, as a rule."""
    if isinstance(model, WithTerm):
        return model.measured(x, noise, y, loss)
    logits = model(x, noise)
    return logits, logits.new_zeros(len(logits))


def _require_graph(logits: Tensor) -> None:
    if not logits.requires_grad:
        raise ValueError(
            "the defence gives logits without a graph back to the image (it runs under no_grad "
            "or detaches it): it cannot be attacked with gradients; use a backprop of Straight() "
            "(BPDA) or make it differentiable"
        )


def _mean(rows: Tensor, draws: int) -> Tensor:
    return rows.view(-1, draws, *rows.shape[1:]).mean(1)


def _of_mean_logits(
    loss: Loss, logits: Tensor, known: Tensor, y: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the loss of the mean logits: derivative by each row's, value, whether it vanished.

    The derivative is scaled for `_mean`; `known` (B, draws) says which draws were answered.
    """
    draws = known.shape[1]
    with torch.enable_grad():
        centre = mean_of(logits.view(*known.shape, -1), known).requires_grad_()
        raised, lost = _raised(loss, centre, y, labels)
        (slope,) = torch.autograd.grad(raised.sum(), centre)
    return slope.repeat_interleave(draws, 0), loss(centre.detach(), y), lost[:, None]
