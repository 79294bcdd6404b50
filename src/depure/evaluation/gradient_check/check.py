"""A gradient proves itself: comparison with finite differences and the exact gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional

from depure.defences.defended import Defended
from depure.diffusion.backprop import Backprop, Checkpoint, Full
from depure.evaluation.gradient_check.arithmetic import Arithmetic, NoGradient, NotFinite
from depure.evaluation.gradient_check.measure import Effort, Seen, measure, points_of
from depure.noise import Noise
from depure.purifiers.base import Purifier, check_images
from depure.purifiers.chained import Chained
from depure.threat import Ball, Linf


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


_COARSE = (
    "; the defence does not run in float64, and in {} errors of scale of about 1e-5, rounding and "
    "dropout of 1e-3 cannot be seen"
)
_NOTHING = "nothing to compare with"


@dataclass(frozen=True)
class GradientCheck:
    """What `verify_gradient` found. `passed` is whether the defence's own gradient is exact."""

    passed: bool
    verdict: str
    images: int
    finite_difference_error: float  # of the defence's own gradient, relative
    reference: str
    rows: tuple[Agreement, ...]
    arithmetic: str = "none"  # the dtype in which differences were taken
    points: int = 0
    tolerance: float = math.nan  # largest relative error of a point

    @property
    def judged(self) -> bool:
        """Whether there was anything to judge the gradient by."""
        return self.reference != _NOTHING

    @staticmethod
    def of_record(data: dict[str, Any], path: Path) -> GradientCheck:
        """Read back what `record` gave.

        Raises:
            ValueError: if it is no gradient check.
        """

        def number(value: Any) -> Any:
            return math.nan if value is None else value

        try:
            rows = [{k: number(v) for k, v in row.items()} for row in data["rows"]]
            fields = {k: number(v) for k, v in data.items() if k != "rows"}
            return GradientCheck(**fields, rows=tuple(Agreement(**row) for row in rows))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no gradient check: delete it and run again") from error

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
    ball: Ball | None = None,
    chunk: int = 32,
    short: bool = False,
    approximations: Sequence[Backprop] = (),
    tolerance: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> GradientCheck:
    """Compare a defence's gradient with central finite differences, the noise frozen.

    A fixed random sum of the logits is differentiated, which stays steep where a loss is flat. The
    points lie near the images, inside the ball and on its edge, moved off kinks by keyed noise. It
    runs in float64 where the defence does, else in the dtype of `x`. The gradient in the dtype of
    `x`, with `chunk` rows at a time, is then compared with that one, row by row. Where the purifier
    calls its network more than 20 times, all this takes at most 4 times the rows of one gradient of
    `chunk` rows: the fewer these are, the fewer are the points.

    Args:
        model: the defence; anything differentiable with the `Defended` interface.
        x: a few images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: one row per image; from seed 0 if omitted.
        ball: where the attack will search; `Linf(8/255)` if omitted.
        chunk: rows of one forward pass of the attack, at least 1.
        short: look at 3 points at most, instead of 12.
        approximations: loop drivers to compare, e.g. `(Straight(), Surrogate(5))`.
        tolerance: largest relative error of a point; by default 1e-5 in float64, 0.05 in float32.
        progress: called with the share that is done, up to 1.

    Raises:
        ValueError: for unusable images, labels or settings.
    """
    _check_call(x, y, chunk)
    noise = Noise.of(0, range(len(x))) if noise is None else noise
    with calls_counted(model) as calls:
        classes = check_labels(model, x, y, noise)
    for _ in approximations:
        _with(model, Full())  # refuses a purifier without a loop driver
    exact = model.purifier.exact
    effort = Effort.of(chunk, max(calls.values(), default=1), short=short, exact=exact)
    ball = Linf(8 / 255) if ball is None else ball
    points = points_of(x, noise, ball, effort.points, classes)
    plain = Arithmetic(model, x.dtype, chunk, tick=_ticks(progress, effort.rows(chunk)))
    try:
        seen = measure(plain, points, chunk, tolerance, effort, exact=exact)
        reference, rows = _compare(seen, effort, approximations)
    except NoGradient as error:
        return _without_gradient(str(error), len(x))
    except NotFinite as error:
        return not_judged(f"NOT JUDGED: {error}", len(x))
    return GradientCheck(
        not seen.faults and exact, _verdict(seen, model.purifier), len(x), seen.error, reference,
        tuple(rows), seen.fine.name, len(seen.points.x), seen.tolerance,
    )  # fmt: skip


def _check_call(x: Tensor, y: Tensor, chunk: int) -> None:
    check_images(x)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y must hold one label per image, shape ({len(x)},); got {tuple(y.shape)}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row; got {chunk}")


@contextmanager
def calls_counted(model: Defended) -> Iterator[dict[Module, int]]:
    """How often each module is called within the block."""
    calls: dict[Module, int] = {}

    def count(module: Module, args: Any) -> None:
        calls[module] = calls.get(module, 0) + 1

    handles = [m.register_forward_pre_hook(count) for m in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _ticks(progress: Callable[[float], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(min(1.0, done / total))

    return tick


def check_labels(model: Defended, x: Tensor, y: Tensor, noise: Noise) -> int:
    """How many classes; raise ValueError unless y holds int64 labels among them."""
    with torch.no_grad():
        classes = model(x[:1], noise[:1]).shape[1]
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f"labels must be int64 in 0..{classes - 1}, the classes that the classifier tells "
            f"apart; got {y.dtype} from {y.min().item()} to {y.max().item()}"
        )
    return int(classes)


def _compare(
    seen: Seen, effort: Effort, approximations: Sequence[Backprop]
) -> tuple[str, list[Agreement]]:
    """The reference's name, and the rows: own in fine and in attack dtype, approximations."""
    fine, purifier, points = seen.fine, seen.fine.model.purifier, seen.points
    name = repr(purifier.backprop) if isinstance(purifier, Chained) else type(purifier).__name__
    exact = purifier.exact
    if not exact and not isinstance(purifier, Chained):
        return "no exact gradient", [Agreement(name, math.nan, math.nan, math.nan, exact=False)]

    def driven(backprop: Backprop) -> Tensor:
        other = replace(fine, model=_with(fine.model, backprop))
        return other.gradient(points.x, points.noise, points.cotangent)[0]

    reference, title = seen.own, f"the defence's own {fine.dtype} gradient".replace("torch.", "")
    if isinstance(purifier, Chained) and (effort.stepwise or approximations):
        reference = driven(Checkpoint())
        title = f"autograd step by step in {fine.dtype}".replace("torch.", "")
    kinds = [str(d).removeprefix("torch.") for d in (fine.dtype, seen.plain.dtype)]
    rows = [Agreement.of(f"{name}, {kinds[0]}", seen.own, reference, exact=exact)]
    if seen.plain.dtype != fine.dtype:
        rows.append(Agreement.of(f"{name}, {kinds[1]}", seen.single, reference, exact=exact))
    rows += [Agreement.of(repr(b), driven(b), reference, exact=b.exact) for b in approximations]
    return title, rows


def _with(model: Defended, backprop: Backprop) -> Defended:
    purifier: Purifier = model.purifier
    if not isinstance(purifier, Chained):
        raise ValueError(
            f"approximations need a purifier with a loop driver (a Chained one, such as DiffPure); "
            f"got {type(purifier).__name__}"
        )
    return Defended(purifier.with_backprop(backprop), model.classifier)


def not_judged(verdict: str, images: int) -> GradientCheck:
    """A check that says neither yes nor no, and why."""
    return GradientCheck(False, verdict, images, math.nan, _NOTHING, ())


def _without_gradient(reason: str, images: int) -> GradientCheck:
    verdict = (
        f"FAILED: {reason}; a gradient attack would credit the defence with robustness it does "
        f"not have. Use backprop Straight() (BPDA) or an attack that needs no gradient, or make "
        f"the purifier differentiable."
    )
    return GradientCheck(False, verdict, images, math.nan, "none", ())


def _verdict(seen: Seen, purifier: Purifier) -> str:
    where = f"in {seen.fine.name}, tolerance {seen.tolerance:.0e}, at {len(seen.points.x)} points"
    if seen.fine.dtype != torch.float64:
        where += _COARSE.format(seen.fine.name)
    if not purifier.exact:
        return (
            f"FAILED: the gradient is not that of the defence (finite differences: "
            f"{seen.error:.1e}, {where}): it is an approximation, by choice of backprop"
        )
    if not seen.faults:
        return (
            f"PASSED: the gradient is that of the defence (finite differences: {seen.error:.1e}, "
            f"{where})"
        )
    return f"FAILED: {'; '.join(seen.faults)} ({where})"
