"""Where attacks go: their iterates in a joint linear projection, their losses and directions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from depure.analysis.common import (
    check_counts,
    device_of,
    expect_cells,
    join,
    mean_known,
    short_hash,
    slices,
)
from depure.analysis.store import Array, Arrays, Cells
from depure.attacks.asking.gradients import Expected, distinct_draws
from depure.attacks.asking.losses import LOSSES
from depure.attacks.base import Watch, start_point
from depure.attacks.case import Case
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.record import describe
from depure.evaluation.shards import base_noise
from depure.noise import Noise
from depure.rows import rows_at_once
from depure.threat import Norm, Threat

INFERENCES = (
    "inference: the paper does not state how its trajectories were projected nor under which noise "
    "their loss was measured; here it is a linear projection per image (principal axes about the "
    "clean image), with the loss under the noise named",
)


@dataclass(frozen=True)
class Route:
    """One attack on every image.

    Args:
        name: "dw-box" (all noise known), "white-box-eot" or "white-box" (one draw an iteration).
        repeat: repetitions have their own draws; 0 has those that `evaluate` would use.
    """

    name: str
    repeat: int = 0

    def __post_init__(self) -> None:
        if self.name not in ("dw-box", "white-box-eot", "white-box"):
            raise ValueError(
                f"an attack path must be dw-box, white-box-eot or white-box; got {self.name!r}"
            )

    def __str__(self) -> str:
        return f"{self.name} {self.repeat + 1}" if self.repeat else self.name

    def threat(self, model: Defended, ball: Norm) -> Threat:
        """The ball, and every stage or none known."""
        return Threat(ball, model.stages if self.name == "dw-box" else ())

    def attack(self, attack: PGD) -> PGD:
        """The settings with this route's number of draws."""
        return attack if self.name == "white-box-eot" else replace(attack, eot=1)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Paths of P attacks of T iterations on n images. Lengths are L2 norms in [0, 1] pixels.

    `coordinates` is each iterate's perturbation along two axes per image: the principal axes,
    about the clean image, of all iterates of all paths of that image. `explained` is the share of
    their summed squares on each axis. The axes point so that the end of the first path has a
    positive first, the mean end of the others a positive second coordinate.
    """

    paths: tuple[str, ...]
    coordinates: Array  # (n, P, T + 1, 2)
    explained: Array  # (n, 2), NaN where no attack moved the image
    fixed: Array  # (n, P, T + 1), loss under the noise that DW-box knows
    fresh: Array  # (n, P, T + 1), mean loss over draws that no attack used
    ends: Array  # (n, P, P), cosines between the final perturbations
    steps: Array  # (n, P, P), between the steps of one iteration, mean over the iterations
    turns: Array  # (n, P, T - 1), between successive steps of one path
    index: Array  # (n,), data-set indices
    settings: dict[str, Any]
    notes: ClassVar[tuple[str, ...]] = INFERENCES

    def arrays(self) -> Arrays:
        """All arrays by name, with the names of the paths."""
        return {k: np.asarray(v) for k, v in vars(self).items() if k != "settings"}


def trajectories(
    model: Defended,
    images: Images,
    ball: Norm,
    *,
    attack: PGD | None = None,
    repeats: int = 2,
    draws: int = 4,
    seed: int = 0,
    batch: int = 8,
    cells: Cells | None = None,
) -> Trajectories:
    """Paths of DW-box, white-box EoT and single-draw white-box attacks, compared.

    Args:
        model: the defence; it must draw noise.
        images: n images.
        ball: what the attacks may change.
        attack: settings of all of them; `eot` is for the EoT attack. PGD-20, EoT 10 by default.
        repeats: attacks of each white-box kind on every image.
        draws: fresh draws of the mean loss, the same ones at every iterate.
        seed: of all noise.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: the defence draws no noise, a number is below 1, or no attack moves an image.

    Source: ADDT's figure of attack trajectories; what is inferred stands in `notes`.
    """
    attack = PGD() if attack is None else attack
    check_counts(repeats=repeats, draws=draws, batch=batch, images=len(images))
    check_random(model)
    kinds = ("white-box-eot", "white-box")
    routes = [Route("dw-box"), *(Route(k, r) for k in kinds for r in range(repeats))]
    parts = slices(len(images), batch)
    cells = expect_cells(cells, len(parts) * (len(routes) + 1))
    settings = {**settings_of(model, images, ball, attack, seed), "draws": draws}
    label, found = short_hash({**settings, "repeats": repeats}), []
    for part in parts:
        few = images[part]
        paths = [path_of(model, few, ball, attack, route, seed, cells) for route in routes]
        compute = partial(_measured, model, few, torch.stack(paths, 1), attack, draws, seed)
        found.append(cells(f"trajectories-{label}-{part.start}-{part.stop}", compute))
    joined = join(found)
    if np.isnan(joined["explained"]).all():
        raise ValueError(
            "no attack moved any image (all gradients are zero): there is no path to show; take a "
            "larger step_size, or look at the gradients of this defence"
        )
    names = tuple(str(r) for r in routes)
    return Trajectories(names, index=images.index.numpy(), settings=settings, **joined)


def _measured(
    model: Defended, few: Images, iterates: Tensor, attack: PGD, draws: int, seed: int
) -> Arrays:
    """Everything of some images, from their iterates (B, P, T + 1, C, H, W)."""
    b, p, t = iterates.shape[:3]
    points = iterates.flatten(1, 2)
    fixed, fresh = (
        losses_at(model, points, few.y, noise, draws, attack.loss).view(b, p, t).numpy()
        for noise in height_noise(model, few.index, seed)
    )
    deltas = (iterates - few.x[:, None, None]).flatten(3).double().numpy()
    projected = [project(d) for d in deltas]
    return {
        "coordinates": np.stack([c for c, _ in projected]),
        "explained": np.stack([e for _, e in projected]),
        "fixed": fixed,
        "fresh": fresh,
        **directions(deltas),
    }


def project(deltas: Array) -> tuple[Array, Array]:
    """Perturbations (P, T, D) of one image on their two principal axes about zero.

    Returns:
        Coordinates (P, T, 2), and the share of the summed squares on each axis (2,); NaN where
        all perturbations are zero.
    """
    rows = deltas.reshape(-1, deltas.shape[-1])
    _, sizes, axes = np.linalg.svd(rows, full_matrices=False)
    sizes = np.pad(sizes, (0, 2))
    axes = np.pad(axes, ((0, 2), (0, 0)))[:2]
    total = float((sizes**2).sum())
    share = sizes[:2] ** 2 / total if total > 0 else np.full(2, np.nan)
    found = deltas @ axes.T
    others = found[1:, -1, 1].mean() if len(found) > 1 else found[0, -1, 1]
    signs = np.where(np.array([found[0, -1, 0], others]) < 0, -1.0, 1.0)
    return found * signs, share


def directions(deltas: Array) -> Arrays:
    """Cosines of paths (B, P, T + 1, D): their ends, steps and turns, see `Trajectories`.

    NaN with a perturbation or step of length zero.
    """
    ends, moves = _unit(deltas[:, :, -1]), _unit(np.diff(deltas, axis=2))
    same = np.einsum("bptd,bqtd->bpqt", moves, moves)
    return {
        "ends": np.einsum("bpd,bqd->bpq", ends, ends),
        "steps": mean_known(same, -1),
        "turns": (moves[:, :, 1:] * moves[:, :, :-1]).sum(-1),
    }


def _unit(rows: Array) -> Array:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm > 0, norm, np.nan)


def follow(attack: PGD, model: Defended, images: Images, ball: Norm, noise: Noise) -> Tensor:
    """Every iterate of a PGD attack (B, steps + 1, C, H, W), from its start to its proposal.

    The gradients are those that the attack reports; the steps are repeated from them.

    Raises:
        RuntimeError: the repeated steps do not end at the attack's own proposal.
    """
    device = device_of(model, images.x)
    x, y = images.x.to(device), images.y.to(device)
    step = ball.default_step if attack.step_size is None else attack.step_size
    case = Case(model, x, y, ball, noise)
    path = _Path(ball, x, step, start_point(case, attack.start, attack.random_start))
    end = attack(model, x, y, ball, noise, watch=path)
    if not torch.equal(end, path.points[-1]):
        raise RuntimeError("the steps repeated from PGD's gradients do not lead to its proposal")
    return torch.stack(path.points, 1).cpu()


class _Path(Watch):
    """Repeats PGD's steps from the gradients that it reports."""

    def __init__(self, ball: Norm, x: Tensor, step: float, start: Tensor) -> None:
        self.ball, self.x, self.step, self.points = ball, x, step, [start]

    def iteration(self, measured: Expected) -> None:
        step = self.step * self.ball.ascend(measured.grad)
        self.points.append(self.ball.project(self.points[-1] + step, self.x))


def path_of(
    model: Defended,
    images: Images,
    ball: Norm,
    attack: PGD,
    route: Route,
    seed: int,
    cells: Cells,
) -> Tensor:
    """The iterates of one route (B, steps + 1, C, H, W): a cell, so instruments can share it."""
    threat, attack = route.threat(model, ball), route.attack(attack)
    noise = base_noise(model, images.index, threat, seed).fold("attack")
    if route.repeat:
        noise = noise.fold("repeat", route.repeat)
    record = describe(model, images, attack, threat, draws=1, seed=seed)
    name = f"path-{route.name}-{route.repeat}-{short_hash(record)}"
    found = cells(name, lambda: {"x": follow(attack, model, images, ball, noise).numpy()})
    return torch.from_numpy(found["x"])


def height_noise(model: Defended, index: Tensor, seed: int) -> tuple[Noise, Noise]:
    """The noise that DW-box knows, and fresh noise that no attack of this seed used."""
    base = Noise.of(seed, index)
    return base.lock(*model.stages), base.fold("height")


def losses_at(
    model: Defended,
    points: Tensor,
    y: Tensor,
    noise: Noise,
    draws: int,
    loss: str = "ce",
) -> Tensor:
    """Mean loss (B, P) at P points of each image (B, P, C, H, W), float32 on the CPU.

    All points of an image are judged under the same draws.
    """
    device, (b, p) = device_of(model, points), points.shape[:2]
    draws = distinct_draws(model.stages, noise, draws)
    rows = noise.draws(draws)
    at = torch.arange(b * p).repeat_interleave(draws)
    key = torch.arange(b * draws).view(b, 1, draws).expand(b, p, draws).flatten()
    flat, found = points.flatten(0, 1), []
    with torch.no_grad():
        for part in slices(len(at), rows_at_once(flat)):
            logits = model(flat[at[part]].to(device), rows[key[part]])
            found.append(LOSSES[loss](logits, y[at[part] // p].to(device)).cpu())
    return torch.cat(found).view(b, p, draws).mean(2)


def settings_of(
    model: Defended, images: Images, ball: Norm, attack: PGD, seed: int
) -> dict[str, Any]:
    """What every instrument on attacks records: the setting of an evaluation of this attack."""
    record = describe(model, images, attack, Threat(ball), draws=1, seed=seed)
    return {k: record[k] for k in ("data", "model", "attack", "seed")} | {
        "ball": {"name": type(ball).__name__, **asdict(ball)}  # type: ignore[call-overload]
    }


def check_random(model: Defended) -> None:
    """Raise ValueError for a defence without randomness."""
    if not model.stages:
        raise ValueError(
            "this defence draws no noise, so that DW-box and white-box are one attack and their "
            "paths coincide: analyse a stochastic defence, or name two other directions"
        )
