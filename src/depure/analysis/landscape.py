"""The mean loss over a plane of perturbations, and the paths of attacks across it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from depure.analysis.common import check_counts, expect_cells, join, short_hash, slices
from depure.analysis.store import Array, Arrays, Cells
from depure.analysis.trajectories import Route, height_noise, losses_at, path_of, settings_of
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.noise import Noise
from depure.threat import Norm
from depure.weights import fingerprint

Direction = str | Tensor

INFERENCES = (
    "inference: the paper does not state the units, the grid, the noise of the surface or the "
    "averaging of its landscape; here x = 1 is the final perturbation of the first direction, "
    "y = 1 the second one's residual, at its own length",
)
_NO_ATTACK = ("random", "given")
_PARALLEL = 1e-3  # sine of an angle that counts as none, above float32 rounding


@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss of n images at x + a * first + b * residual, cut to [0, 1], for a in X and b in Y.

    `first` is an image's first direction; `residual` is its second one less its projection on the
    first (Gram-Schmidt): both per image and at their own lengths. Perturbations off the plane, as
    on an attack's path, are drawn at their orthogonal projections.
    """

    directions: tuple[str, str]
    x: Array  # (X,), multiples of the first direction
    y: Array  # (Y,), multiples of the residual
    fixed: Array  # (n, X, Y), loss under the noise that DW-box knows
    fresh: Array  # (n, X, Y), mean loss over draws that no attack used
    clamped: Array  # (n, X, Y), share of the pixels that were cut to [0, 1]
    cosine: Array  # (n,), between the two directions
    lengths: Array  # (n, 2), L2 norms of the first direction and of the residual
    paths: tuple[str, ...]
    path_coordinates: Array  # (n, P, T + 1, 2), multiples of the two
    path_fixed: Array  # (n, P, T + 1), true loss of the iterates, as `fixed`
    path_fresh: Array  # (n, P, T + 1), as `fresh`
    off_plane: Array  # (n, P, T + 1), share of an iterate's L2 norm that is off the plane
    index: Array  # (n,), data-set indices
    left_out: Array  # data-set indices of images whose directions span no plane
    settings: dict[str, Any]
    notes: ClassVar[tuple[str, ...]] = INFERENCES

    def arrays(self) -> Arrays:
        """All arrays by name, with the names of directions and paths."""
        return {k: np.asarray(v) for k, v in vars(self).items() if k != "settings"}


def landscape(
    model: Defended,
    images: Images,
    ball: Norm,
    *,
    attack: PGD | None = None,
    directions: tuple[Direction, Direction] = ("dw-box", "white-box-eot"),
    span: tuple[float, float] = (-0.5, 2.0),
    points: int = 11,
    draws: int = 4,
    seed: int = 0,
    batch: int = 8,
    cells: Cells | None = None,
) -> Landscape:
    """Loss over the plane of two directions, under fixed and under fresh noise.

    Args:
        model: the defence.
        images: the images averaged over.
        ball: what the attacks may change.
        attack: settings of the attacks; `eot` is for the EoT one. PGD-20, EoT 10 by default.
        directions: each "dw-box", "white-box-eot" or "white-box" (that attack's perturbation),
            "random" (a random point of the ball), or a tensor of perturbations (n, C, H, W).
        span: first and last coordinate on both axes.
        points: on each axis.
        draws: fresh draws of the mean loss, the same ones at every point.
        seed: of all noise.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: the directions of every image are zero or parallel, the loss is the same all
            over the plane, or a setting is out of range.

    Source: ADDT's figure of loss landscapes; what is inferred stands in `notes`.
    """
    attack = PGD() if attack is None else attack
    check_counts(draws=draws, batch=batch, images=len(images))
    if points < 3 or not span[0] < span[1]:
        raise ValueError(f"a surface needs 3 points and a span that rises; got {points}, {span}")
    for way in directions:
        _check_direction(way, model, images)
    axis, parts = np.linspace(*span, points), slices(len(images), batch)
    settings = {**settings_of(model, images, ball, attack, seed), "draws": draws}
    given = [fingerprint({"given": w}) for w in directions if isinstance(w, Tensor)]
    ways = tuple(w if isinstance(w, str) else "given" for w in directions)
    label = short_hash({**settings, "ways": ways, "given": given, "axis": axis.tolist()})
    routes = _routes(model, ways)
    cells = expect_cells(cells, len(parts) * (len(routes) + points + 1))
    work = _Work(model, ball, attack, axis, draws, seed, cells, label)
    joined = join([work.part(images, part, directions, routes) for part in parts])
    return _result(images, ways, axis, tuple(str(r) for r in routes), joined, settings)


def _routes(model: Defended, ways: tuple[str, ...]) -> list[Route]:
    """The attacks whose paths are drawn: the two of the paper, and those named besides."""
    wanted = ["dw-box", *(["white-box-eot"] if model.stages else [])]
    return [Route(name) for name in dict.fromkeys([*wanted, *ways]) if name not in _NO_ATTACK]


@dataclass(frozen=True, eq=False)
class Plane:
    """Two orthogonal directions (B, D) per image, float64; `spans` where they are two."""

    first: Array
    residual: Array
    cosine: Array  # (B,)

    @property
    def spans(self) -> Array:
        """(B,) bool, whether the directions given were neither zero nor parallel."""
        sine = np.sqrt(np.maximum(1.0 - self.cosine**2, 0.0))
        return np.asarray(np.nan_to_num(sine) > _PARALLEL)

    def coordinates(self, deltas: Array) -> tuple[Array, Array]:
        """Perturbations (B, ..., D) in multiples of the two, and the share off the plane."""
        axes = np.stack([self.first, self.residual], 1)  # (B, 2, D)
        squares = (axes**2).sum(-1)
        flat = deltas.reshape(len(deltas), -1, deltas.shape[-1])
        found = flat @ axes.transpose(0, 2, 1) / _positive(squares)[:, None]
        off = np.linalg.norm(flat - found @ axes, axis=-1)
        share = off / _positive(np.linalg.norm(flat, axis=-1))
        shape = deltas.shape[:-1]
        return found.reshape(*shape, 2), share.reshape(shape)


def plane(first: Tensor, second: Tensor) -> Plane:
    """Gram-Schmidt on perturbations (B, C, H, W), per image."""
    a, b = (d.flatten(1).double().cpu().numpy() for d in (first, second))
    dot, square = (a * b).sum(1), (a * a).sum(1)
    residual = b - (dot / _positive(square))[:, None] * a
    norms = np.sqrt(square) * np.linalg.norm(b, axis=1)
    cosine = np.where(norms > 0, dot / _positive(norms), np.nan)
    return Plane(a, residual, np.clip(cosine, -1.0, 1.0))


def _positive(values: Array) -> Array:
    return np.asarray(np.where(values > 0, values, 1.0))


def _check_direction(way: Direction, model: Defended, images: Images) -> None:
    if isinstance(way, Tensor):
        if way.shape != images.x.shape or not bool(way.isfinite().all()):
            raise ValueError(
                f"a direction must be finite and of the images' shape {tuple(images.x.shape)}; "
                f"got {tuple(way.shape)}"
            )
        return
    if way != "random":
        Route(way)
    if not model.stages and way not in ("random", "dw-box"):
        raise ValueError(
            "this defence draws no noise, so that DW-box and white-box attacks are one and their "
            "directions parallel: take a denoiser (--denoiser), or pass directions=('dw-box', "
            "'random') or two of your own"
        )


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything that a piece of the surface needs besides its images."""

    model: Defended
    ball: Norm
    attack: PGD
    axis: Array
    draws: int
    seed: int
    cells: Cells
    label: str

    def part(
        self,
        images: Images,
        part: slice,
        directions: tuple[Direction, Direction],
        routes: list[Route],
    ) -> Arrays:
        """Everything of some images: the surface row by row, and the paths."""
        few, name = images[part], f"landscape-{self.label}-{part.start}-{part.stop}"
        paths = {
            r.name: path_of(self.model, few, self.ball, self.attack, r, self.seed, self.cells)
            for r in routes
        }
        pair = [
            w[part] if isinstance(w, Tensor) else self.named(w, i, few, paths)
            for i, w in enumerate(directions)
        ]
        flat = plane(*pair)
        rows = [
            self.cells(f"{name}-row{i}", partial(self.row, few, flat, a))
            for i, a in enumerate(self.axis)
        ]
        surface = {k: np.stack([r[k] for r in rows], 1) for k in rows[0]}
        iterates = torch.stack(list(paths.values()), 1)
        lengths = [np.linalg.norm(d, axis=1) for d in (flat.first, flat.residual)]
        rest = {"cosine": flat.cosine, "spans": flat.spans, "lengths": np.stack(lengths, 1)}
        return {
            **surface,
            **self.cells(f"{name}-paths", partial(self.along, few, flat, iterates)),
            **rest,
        }

    def named(self, way: str, place: int, few: Images, paths: dict[str, Tensor]) -> Tensor:
        """The perturbation that an attack ended at, or a random one."""
        if way == "random":
            noise = Noise.of(self.seed, few.index).fold("direction", place)
            return self.ball.start(few.x, noise) - few.x
        return paths[way][:, -1] - few.x

    def heights(self, few: Images, points: Tensor) -> tuple[Array, Array]:
        """Losses (B, P) at points (B, P, C, H, W), under fixed and under fresh noise."""
        fixed, fresh = height_noise(self.model, few.index, self.seed)
        ask = partial(losses_at, self.model, points, few.y, draws=self.draws, loss=self.attack.loss)
        return ask(noise=fixed).numpy(), ask(noise=fresh).numpy()

    def row(self, few: Images, flat: Plane, a: float) -> Arrays:
        """The surface at one multiple of the first direction."""
        steps = a * flat.first[:, None] + self.axis[None, :, None] * flat.residual[:, None]
        shape = (len(few), len(self.axis), *few.x.shape[1:])
        wanted = few.x[:, None] + torch.from_numpy(steps).view(shape)
        points = wanted.clamp(0.0, 1.0)
        cut = ((points - wanted).abs() > 1e-6).flatten(2).double().mean(2).numpy()
        fixed, fresh = self.heights(few, points.to(few.x.dtype))
        return {"fixed": fixed, "fresh": fresh, "clamped": cut}

    def along(self, few: Images, flat: Plane, iterates: Tensor) -> Arrays:
        """Coordinates and losses of the iterates (B, P, T + 1, C, H, W)."""
        shape = iterates.shape[:3]
        fixed, fresh = (h.reshape(shape) for h in self.heights(few, iterates.flatten(1, 2)))
        deltas = (iterates - few.x[:, None, None]).flatten(3).double().numpy()
        at, off = flat.coordinates(deltas)
        return {"path_coordinates": at, "off_plane": off, "path_fixed": fixed, "path_fresh": fresh}


def _result(
    images: Images,
    ways: tuple[str, ...],
    axis: Array,
    names: tuple[str, ...],
    joined: Arrays,
    settings: dict[str, Any],
) -> Landscape:
    """The images that span a plane, if there are any and their loss varies."""
    spans = joined.pop("spans")
    index = images.index.numpy()
    if not spans.any():
        raise ValueError(
            f"the directions {ways[0]} and {ways[1]} are zero or parallel for all {len(images)} "
            f"images (largest sine of their angle below {_PARALLEL:g}): they span no plane; "
            f"choose another pair, such as ('dw-box', 'random')"
        )
    kept = {k: v[spans] for k, v in joined.items()}
    if max(float(np.ptp(kept[k], axis=(1, 2)).max()) for k in ("fixed", "fresh")) < 1e-6:
        raise ValueError(
            f"the loss does not change over the plane of {ways[0]} and {ways[1]}, under fixed or "
            f"fresh noise: there is no landscape; widen span, or check the directions and the loss"
        )
    return Landscape(
        (ways[0], ways[1]), axis, axis, paths=names, index=index[spans],
        left_out=index[~spans], settings=settings, **kept,
    )  # fmt: skip
