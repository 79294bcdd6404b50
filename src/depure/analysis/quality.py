"""How near generated and purified images come to the data: FID, KID and samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from depure.analysis.common import check_counts, device_of, expect_cells, join, short_hash, slices
from depure.analysis.purification import penultimate
from depure.analysis.store import Array, Arrays, Cells
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.record import describe
from depure.noise import Noise
from depure.purifiers.base import Purifier
from depure.threat import Linf, Threat
from depure.weights import fingerprint

NOTES = (
    "FID and KID are made of the features named: on a classifier's features they are not the "
    "published FID and KID, whose features are Inception's (`inception_features`); only numbers on "
    "the same features, references and numbers of images compare",
    "FID is biased upwards with few images: held-out real images stand beside, at their number",
    "KID's error is the standard error of independent blocks",
)


@dataclass(frozen=True, eq=False)
class Features:
    """A named map from images (B, C, H, W) in [0, 1] to features (B, d).

    Args:
        name: what they are; part of what a run is known by.
        extract: gives the features of images on any device.
        weights: fingerprint of what extracts; part of what a run is known by. Without it the
            features are computed again in every run.
        about: what the features make of FID and KID, to stand beside the numbers.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    weights: str = ""
    about: str = "not the published FID and KID, which are made of Inception's features"


@dataclass(frozen=True, eq=False)
class Quality:
    """Distances of S sets of images from the reference set, on the named features."""

    sets: tuple[str, ...]  # "held-out", "purified", "generated", and "attacked" if given
    features: str
    about: str  # whether FID and KID are the published ones
    fid: Array  # (S,), squared feature units
    kid: Array  # (S,), of the polynomial kernel; may be negative
    kid_error: Array  # (S,), standard error; NaN with one block
    counts: Array  # (S,), images of each set
    reference: int  # images of the reference set
    dimensions: int  # of a feature
    samples: dict[str, Array]  # a few images (k, C, H, W) of each set, in [0, 1]
    settings: dict[str, Any]
    notes: ClassVar[tuple[str, ...]] = NOTES

    def arrays(self) -> Arrays:
        """All arrays by name; samples as "samples_purified" and so on."""
        plain = {
            k: np.asarray(v) for k, v in vars(self).items() if k not in ("samples", "settings")
        }
        return {**plain, **{f"samples_{k}": v for k, v in self.samples.items()}}


def quality(
    model: Defended,
    images: Images,
    reference: Images,
    *,
    attacked: Tensor | None = None,
    features: Features | None = None,
    generated: int | None = None,
    steps: int = 50,
    blocks: int = 8,
    shown: int = 10,
    seed: int = 0,
    batch: int = 64,
    cells: Cells | None = None,
) -> Quality:
    """FID and KID of held-out, purified and generated images against the data.

    Generated images are grey ones purified from the end of the schedule (t_star = 1; sigma_max
    on `Karras`), where nothing of an image is left.

    Args:
        model: a classifier behind a purifier that can generate, such as a `DiffPure`.
        images: held-out images of the data; purified as the defence is set.
        reference: images of the data, none of them in `images`.
        attacked: attacked versions of `images`, purified as another set.
        features: by default the classifier's penultimate ones; see `inception_features`.
        generated: how many to generate; as many as `images` by default.
        steps: reverse steps of a generation.
        blocks: of each set, for the standard error of KID.
        shown: images of each set that are kept to be shown.
        seed: of all noise.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: the purifier generates no images, the classifier has no linear layer before its
            logits, or there are fewer than two images for a block.

    Source: FID 1706.08500, equation 6; KID 1801.01401, section 4.
    """
    n = len(images) if generated is None else generated
    check_counts(blocks=blocks, steps=steps, batch=batch, shown=shown, generated=n)
    _check_sizes(blocks, held_out=len(images), generated=n, reference=len(reference))
    generator = model.purifier.generator(steps)
    features = _classifier_features(model, images.x[:1]) if features is None else features
    settings = _settings(model, images, reference, features, steps, seed)
    sizes = _sizes(len(images), n, len(reference), attacked is not None, bool(features.weights))
    cells = expect_cells(cells, sum(len(slices(k, batch)) for k in sizes))
    work = _Work(model, generator, features, steps, seed, batch, cells, settings)
    sets = {
        "held-out": images.x,
        "purified": work.purified("purified", images.x, images.index),
        "generated": work.generated(n, images.x),
    }
    if attacked is not None:
        sets["attacked"] = attacked
        name = f"attacked-{fingerprint({'x': attacked})}"
        sets["purified attacked"] = work.purified(name, attacked, images.index)
    return _measure(work, sets, reference, blocks, shown)


def _sizes(held_out: int, generated: int, reference: int, attacked: bool, kept: bool) -> list[int]:
    """Of everything that is computed in cells: the images that are made, and all features."""
    more = [held_out] if attacked else []
    made = [held_out, generated, *more]
    return made + ([reference, held_out, *made, *more] if kept else [])


def _check_sizes(blocks: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 2 * blocks:
            raise ValueError(
                f"{blocks} blocks need at least {2 * blocks} {name.replace('_', '-')} images, two "
                f"each; got {size}: take fewer blocks or more images"
            )


def _classifier_features(model: Defended, one: Tensor) -> Features:
    classifier = model.classifier
    with torch.no_grad():
        if penultimate(classifier, one.to(device_of(model, one))) is None:
            raise ValueError(
                f"{type(classifier).__name__} has no linear layer that makes its logits, so no "
                f"penultimate features: pass features=Features(name, extract)"
            )

    def extract(x: Tensor) -> Tensor:
        found = penultimate(classifier, x)
        if found is None:
            raise RuntimeError("the classifier's linear layer was not called")
        return found

    name = f"penultimate features of the classifier {type(classifier).__name__}"
    return Features(name, extract, fingerprint(classifier.state_dict()))


def _settings(
    model: Defended, images: Images, reference: Images, features: Features, steps: int, seed: int
) -> dict[str, Any]:
    record = describe(model, images, PGD(), Threat(Linf()), draws=1, seed=seed)
    against = describe(model, reference, PGD(), Threat(Linf()), draws=1, seed=seed)
    kept = {k: record[k] for k in ("data", "model", "seed")}
    kept |= {"reference": against["data"], "steps": steps}
    return {**kept, "features": features.name, "features_weights": features.weights}


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything that makes a batch of images, and its features."""

    model: Defended
    generator: Purifier
    features: Features
    steps: int
    seed: int
    batch: int
    cells: Cells
    settings: dict[str, Any]

    def purified(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """Purified images, cut to [0, 1]."""
        noise = Noise.of(self.seed, index).fold("quality")
        return self._purify(name, self.model.purifier, x, noise)

    def generated(self, n: int, like: Tensor) -> Tensor:
        """Images out of noise alone."""
        grey = torch.full((n, *like.shape[1:]), 0.5, dtype=like.dtype)
        noise = Noise.of(self.seed, range(n)).fold("generate")
        return self._purify("generated", self.generator, grey, noise)

    def _purify(self, name: str, purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
        def compute(x: Tensor, part: slice) -> Tensor:
            return torch.as_tensor(purifier(x, noise[part]).clamp(0, 1))

        # Without the features: other features of the same images find them made.
        apart = ("features", "features_weights")
        label = short_hash({k: v for k, v in self.settings.items() if k not in apart})
        return self._all(f"{label}-{name}", x, compute, self.cells)

    def seen(self, name: str, x: Tensor) -> Array:
        """Features (n, d) of images, in double precision."""
        mark = fingerprint({"x": x})  # nothing else tells the attacked images of two runs apart
        label = f"{short_hash(self.settings)}-{name.replace(' ', '-')}-features-{mark}"
        kept = self.cells if self.features.weights else Cells(None, {})
        found = self._all(label, x, lambda part, _: self.features.extract(part), kept)
        return np.asarray(found.double().numpy())

    def _all(
        self, label: str, x: Tensor, compute: Callable[[Tensor, slice], Tensor], cells: Cells
    ) -> Tensor:
        device = device_of(self.model, x)

        def one(part: slice) -> Arrays:
            with torch.no_grad():
                return {"x": compute(x[part].to(device), part).cpu().numpy()}

        parts = [
            cells(f"quality-{label}-{p.start}-{p.stop}", partial(one, p))
            for p in slices(len(x), self.batch)
        ]
        return torch.from_numpy(join(parts)["x"])


def _measure(
    work: _Work, sets: dict[str, Tensor], reference: Images, blocks: int, shown: int
) -> Quality:
    real = work.seen("reference", reference.x)
    found = {name: work.seen(name, x) for name, x in sets.items()}
    kids = [kid(f, real, blocks) for f in found.values()]
    return Quality(
        tuple(sets), work.features.name, work.features.about,
        np.array([fid(f, real) for f in found.values()]),
        np.array([k[0] for k in kids]), np.array([k[1] for k in kids]),
        np.array([len(x) for x in sets.values()]), len(real), real.shape[1],
        {name: x[:shown].numpy() for name, x in sets.items()},
        {**work.settings, "blocks": blocks},
    )  # fmt: skip


def fid(one: Array, other: Array) -> float:
    """Frechet distance of Gaussians fitted to features (n, d) and (m, d), n and m at least 2.

    `|mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2))` (1706.08500, equation 6). The trace of the
    root is the sum of the singular values of R R'^T, where C = R^T R: no root of a matrix is
    taken, and identical features give zero up to rounding.
    """
    roots = [_root(f) for f in (one, other)]
    apart = one.mean(0) - other.mean(0)
    common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(float((r**2).sum()) for r in roots) - 2.0 * float(common)
    return max(float(apart @ apart) + spread, 0.0)


def _root(features: Array) -> Array:
    """R with R^T R the covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def kid(one: Array, other: Array, blocks: int = 8) -> tuple[float, float]:
    """Unbiased squared MMD of features (n, d) and (m, d), and its standard error.

    The kernel is `(a . b / d + 1)^3` (1801.01401, section 4). Each set is dealt into disjoint
    blocks; the estimates of the pairs of blocks are independent. NaN for the error of one block.
    """
    values = [mmd(one[i::blocks], other[i::blocks]) for i in range(blocks)]
    error = np.std(values, ddof=1) / np.sqrt(blocks) if blocks > 1 else np.nan
    return float(np.mean(values)), float(error)


def mmd(one: Array, other: Array) -> float:
    """Unbiased squared MMD of two sets of at least two features each (1801.01401, equation 4)."""

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)

    def within(a: Array) -> float:
        k, n = kernel(a, a), len(a)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    return within(one) + within(other) - 2.0 * float(kernel(one, other).mean())
