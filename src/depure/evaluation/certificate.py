"""A gradient proves itself: comparison with plain autograd and finite differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from depure.attacks.losses import LOSSES, Loss
from depure.diffusion.backprop import Backprop, Full
from depure.noise import Noise
from depure.purify.base import Purifier, check_images
from depure.purify.defended import Defended
from depure.purify.diffpure import DiffPure

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


@dataclass(frozen=True)
class Agreement:
    """How one gradient compares with the reference, over all images together."""

    name: str
    relative_error: float  # |g - reference| / |reference|
    cosine: float
    sign_agreement: float  # share of pixels with the same sign
    exact: bool  # whether it claims to be exact

    @staticmethod
    def of(name: str, grad: Tensor, reference: Tensor, *, exact: bool) -> Agreement:
        """Compare a gradient (B, C, H, W) with the reference."""
        g, r = grad.double().flatten(), reference.double().flatten()
        error = float((g - r).norm() / r.norm().clamp_min(1e-300))
        cosine = float(functional.cosine_similarity(g, r, dim=0, eps=1e-300))
        return Agreement(name, error, cosine, float((g.sign() == r.sign()).double().mean()), exact)


@dataclass(frozen=True)
class Certificate:
    """What `verify_gradient` found. `passed` is whether the defence's own gradient is exact."""

    passed: bool
    verdict: str
    images: int
    finite_difference_error: float  # of the defence's own gradient, relative
    reference: str
    rows: tuple[Agreement, ...]

    @staticmethod
    def of_record(data: dict[str, Any], path: Path) -> Certificate:
        """Read back what `record` gave.

        Raises:
            ValueError: if it is no certificate.
        """

        def number(value: Any) -> Any:
            return math.nan if value is None else value

        try:
            rows = [{k: number(v) for k, v in row.items()} for row in data["rows"]]
            fields = {k: number(v) for k, v in data.items() if k != "rows"}
            return Certificate(**fields, rows=tuple(Agreement(**row) for row in rows))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no certificate: delete it and run again") from error

    def record(self) -> dict[str, Any]:
        """Plain data for a report; not-a-number becomes null."""
        data = asdict(self)
        for row in [data, *data["rows"]]:
            row.update({k: None for k, v in row.items() if v != v})
        return data


def verify_gradient(
    model: Defended,
    x: Tensor,
    y: Tensor,
    noise: Noise | None = None,
    *,
    loss: str = "ce",
    approximations: Sequence[Backprop] = (),
    directions: int = 3,
    tolerance: float = 1e-5,
) -> Certificate:
    """Compare a defence's gradient with plain autograd and finite differences, noise frozen.

    The model is copied to float64. Its own gradient is compared with central finite differences
    along the gradient and along random directions (the best of five step sizes, so that neither
    rounding nor a kink decides), and, for a `DiffPure`, with plain autograd through every step.
    The float32 gradient that attacks will use and each approximation are put beside it.

    Args:
        model: the defence; anything differentiable with the `Defended` interface.
        x: a few images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: one row per image; from seed 0 if omitted.
        loss: "ce", "margin" or "dlr", summed over the images.
        approximations: loop drivers to compare, e.g. `(Straight(), Surrogate(5))`.
        directions: random directions besides the gradient's own.
        tolerance: largest relative error with which the gradient passes.

    Raises:
        ValueError: for unusable images or labels.
    """
    check_images(x)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y must hold one label per image, shape ({len(x)},); got {tuple(y.shape)}"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    noise = Noise.of(0, range(len(x))) if noise is None else noise
    check_labels(model, x, y, noise)
    double = copy.deepcopy(model).double()
    x64, objective = x.double(), LOSSES[loss]
    own = _gradient(double, x64, y, noise, objective)
    if own is None or not own.isfinite().all() or not own.any():
        return _without_gradient(own, len(x))
    error = max(
        _difference_error(double, x64, y, noise, objective, own, v)
        for v in _directions(own, directions)
    )
    reference, rows = _compare(model, double, x, y, noise, objective, own, approximations)
    engine = rows[0].relative_error
    passed = error <= tolerance and engine <= tolerance
    verdict = _verdict(passed, error, engine, double.purifier)
    return Certificate(passed, verdict, len(x), error, reference, tuple(rows))


def _gradient(model: Defended, x: Tensor, y: Tensor, noise: Noise, loss: Loss) -> Tensor | None:
    leaf = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            total = loss(model(leaf, noise), y).sum()
    except RuntimeError as error:
        if "cut the graph" in str(error):
            return None
        raise
    if not total.requires_grad:
        return None
    return torch.autograd.grad(total, leaf, allow_unused=True)[0]


def check_labels(model: Defended, x: Tensor, y: Tensor, noise: Noise) -> None:
    """Raise ValueError unless y holds int64 labels that the model's logits cover."""
    with torch.no_grad():
        classes = model(x[:1], noise[:1]).shape[1]
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f"labels must be int64 in 0..{classes - 1}, the classes that the classifier tells "
            f"apart; got {y.dtype} from {y.min().item()} to {y.max().item()}"
        )


def _compare(
    model: Defended,
    double: Defended,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    loss: Loss,
    own: Tensor,
    approximations: Sequence[Backprop],
) -> tuple[str, list[Agreement]]:
    """The reference's name, and the rows: own float64, own float32, approximations."""
    purifier = double.purifier
    backprop = purifier.backprop if isinstance(purifier, DiffPure) else None
    name = repr(backprop) if backprop else type(purifier).__name__
    exact = purifier.exact
    reference, title = own, "the defence's own float64 gradient"
    if not exact and not isinstance(purifier, DiffPure):
        nothing = Agreement(name, math.nan, math.nan, math.nan, exact=False)
        return "no exact gradient", [nothing]
    if isinstance(purifier, DiffPure):
        full = _with(double, Full())
        reference = _require(_gradient(full, x.double(), y, noise, loss))
        title = "plain autograd in float64"
    rows = [Agreement.of(f"{name}, float64", own, reference, exact=exact)]
    single = _gradient(model, x, y, noise, loss)
    if single is not None and x.dtype != torch.float64:
        kind = str(x.dtype).removeprefix("torch.")
        rows.append(Agreement.of(f"{name}, {kind}", single, reference, exact=exact))
    for other in approximations:
        grad = _require(_gradient(_with(double, other), x.double(), y, noise, loss))
        rows.append(Agreement.of(repr(other), grad, reference, exact=other.exact))
    return title, rows


def _require(grad: Tensor | None) -> Tensor:
    if grad is None:
        raise ValueError(
            "this loop driver gives no gradient at all: check the denoiser and sampler"
        )
    return grad


def _with(model: Defended, backprop: Backprop) -> Defended:
    purifier: Purifier = model.purifier
    if not isinstance(purifier, DiffPure):
        raise ValueError(
            f"approximations need a purifier with a loop driver (DiffPure); "
            f"got {type(purifier).__name__}"
        )
    return Defended(purifier.with_backprop(backprop), model.classifier)


def _directions(grad: Tensor, n: int) -> list[Tensor]:
    """The gradient's own direction and n random ones, each of unit norm over the batch."""
    noise = Noise.of(0, range(len(grad)))
    raw = [grad] + [noise.normal("direction", i, grad) for i in range(n)]
    return [v / v.norm() for v in raw]


def _difference_error(
    model: Defended, x: Tensor, y: Tensor, noise: Noise, loss: Loss, grad: Tensor, v: Tensor
) -> float:
    """Smallest error over step sizes of (f(x + hv) - f(x - hv)) / 2h against <grad, v>.

    Relative to |grad| / sqrt(d), the size of the slope along a random direction, or to the slope
    itself where that is larger.
    """
    slope = float((grad * v).sum())
    scale = max(abs(slope), float(grad.norm()) / math.sqrt(grad.numel()))

    def value(at: Tensor) -> float:
        with torch.no_grad():
            return float(loss(model(at, noise), y).sum())

    errors = [abs((value(x + h * v) - value(x - h * v)) / (2 * h) - slope) for h in _STEPS]
    return min(errors) / scale


def _without_gradient(grad: Tensor | None, images: int) -> Certificate:
    if grad is None:
        reason = "the logits carry no graph back to the image (no_grad or detach)"
    elif not grad.isfinite().all():
        reason = "the gradient is not finite"
    else:
        reason = "the gradient is zero everywhere"
    verdict = (
        f"FAILED: {reason}; a gradient attack would credit the defence with robustness it does "
        f"not have. Use backprop Straight() (BPDA), or make the purifier differentiable."
    )
    return Certificate(False, verdict, images, math.nan, "none", ())


def _verdict(passed: bool, difference: float, engine: float, purifier: Purifier) -> str:
    if passed:
        return f"PASSED: the gradient is that of the defence (finite differences: {difference:.1e})"
    cause = (
        "it is an approximation, by choice of backprop"
        if not purifier.exact
        else "a step runs under no_grad, detaches, or draws noise that differs between calls"
    )
    return (
        f"FAILED: the gradient is not that of the defence (finite differences: {difference:.1e}, "
        f"autograd: {engine:.1e}): {cause}"
    )
