"""What a purifier does to a perturbation, and to the clean image, along its chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from depure.analysis.common import check_counts, device_of, expect_cells, join, short_hash, slices
from depure.analysis.store import Array, Arrays, Cells
from depure.analysis.trajectories import Route, path_of, settings_of
from depure.answers import right
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.diffusion.backprop import Checkpoint
from depure.noise import Noise
from depure.purifiers.base import Purifier
from depure.purifiers.chained import Chained, Level
from depure.records import came
from depure.rows import rows_at_once
from depure.threat import Norm
from depure.weights import fingerprint

NOTES = (
    "removed = 1 - <purified(x_adv) - purified(x), d> / |d|^2 with d = x_adv - x and the same "
    "noise in both purifications; 1 where nothing of the perturbation is left along itself",
    "the grid judges the same attacked images in every cell: an attack made against a cell's own "
    "settings is stronger there",
    "inference: the papers name no such measures; the definitions are ours",
)
_PAIRS = (("adversarial", "adv", "x"), ("clean", "clean", "x"), ("gap", "adv", "clean"))


@dataclass(frozen=True, eq=False)
class Purification:
    """Distances of n images along the chain, and its effects over t_star (T) and steps (S).

    States are K: the input, the noised image, then one per reverse step, each divided by its
    alpha and moved to [0, 1] pixels; the last is the purifier's output itself. Under "l2",
    "linf" (both in [0, 1] pixels) and "features" (L2 between penultimate features, if there are)
    stand three distances (n, K), means over the draws: "adversarial" and "clean" are those of the
    attacked and of the clean image's state from the clean image, "gap" is that between the two
    states under the same noise.
    """

    time: Array  # (K,), share of the schedule that is left (on Karras: the noise level); input 0
    level: Array  # (K,), sigma / alpha of the state; input 0
    adversarial: dict[str, Array]
    clean: dict[str, Array]
    gap: dict[str, Array]
    removed: Array  # (n, K), see NOTES; NaN where the attacked image is the clean one
    t_star: Array  # (T,)
    steps: Array  # (S,)
    accuracy_clean: Array  # (n, T, S), share of draws; NaN where the steps do not fit
    accuracy_attacked: Array  # (n, T, S)
    grid_removed: Array  # (n, T, S), of the purifier's output
    grid_damage: Array  # (n, T, S), L2 of purified(x) - x
    grid_left: Array  # (n, T, S), |purified(x_adv) - purified(x)| / |d|
    index: Array  # (n,), data-set indices
    settings: dict[str, Any]
    notes: ClassVar[tuple[str, ...]] = NOTES

    def arrays(self) -> Arrays:
        """All arrays by name; distances as "adversarial_l2" and so on."""
        found: Arrays = {}
        for name, value in vars(self).items():
            if name != "settings" and isinstance(value, dict):
                found |= {f"{name}_{k}": v for k, v in value.items()}
            elif name != "settings":
                found[name] = np.asarray(value)
        return found


def purification(
    model: Defended,
    images: Images,
    ball: Norm,
    *,
    attack: PGD | None = None,
    attacked: Tensor | None = None,
    t_stars: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    steps: Sequence[int] = (1, 2, 5, 10),
    draws: int = 4,
    seed: int = 0,
    batch: int = 16,
    cells: Cells | None = None,
) -> Purification:
    """Distances along the chain, share removed against damage done, and accuracy over settings.

    Args:
        model: a classifier behind a `Chained` purifier with the settings t_star and steps.
        images: n clean images.
        ball: what the attack may change.
        attack: made on `model` by white-box EoT unless `attacked` is given; PGD-20, EoT 10 by
            default.
        attacked: attacked images (n, C, H, W), in the ball.
        t_stars: rows of the grid; noise levels on a `Karras` schedule.
        steps: columns of the grid.
        draws: fresh draws of every mean, the same for a clean and its attacked image.
        seed: of all noise.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: the purifier is no chain, the attacked images are out of the ball or the clean
            ones, or no number of steps fits a t_star.
    """
    attack = PGD() if attack is None else attack
    check_counts(draws=draws, batch=batch, images=len(images))
    purifier = _chain_of(model)
    variants = _variants(purifier, t_stars, steps)
    if attacked is not None:
        _check_attacked(attacked, images, ball)
    parts = slices(len(images), batch)
    cells = expect_cells(cells, len(parts) * (1 + (attacked is None) + len(variants)))
    settings = {**settings_of(model, images, ball, attack, seed), "draws": draws}
    settings["attacked"] = "white-box-eot" if attacked is None else fingerprint({"x": attacked})
    label, found = short_hash(settings), []
    for part in parts:
        few, name = images[part], f"purification-{label}-{part.start}-{part.stop}"
        if attacked is None:
            path = path_of(model, few, ball, attack, Route("white-box-eot"), seed, cells)
        x_adv = path[:, -1] if attacked is None else attacked[part]
        pair = _Pair(model, few, x_adv, draws, seed)
        pieces = dict(cells(f"{name}-along", partial(pair.along, purifier)))
        for key, variant in variants.items():
            cell = cells(f"{name}-{key}", partial(pair.ends, variant))
            pieces |= {f"{k}@{key}": v for k, v in cell.items()}
        found.append(pieces)
    one, noise = images.x[:1].to(device_of(model, images.x)), Noise.of(seed, images.index[:1])
    with torch.no_grad():
        levels = purifier.levels(one, noise)
    return _result(levels, images, t_stars, steps, join(found), settings)


def _key(t_star: float, steps: int) -> str:
    return f"{t_star:g}-{steps}"


def _chain_of(model: Defended) -> Chained:
    purifier = model.purifier
    known = [f.name for f in fields(purifier.settings)] if isinstance(purifier, Chained) else []
    if not isinstance(purifier, Chained) or not {"t_star", "steps"} <= set(known):
        raise ValueError(
            f"this analysis follows a chain over t_star and steps, such as a DiffPure's; got "
            f"{came(purifier)}: give the purifier that does the denoising"
        )
    return purifier


def _variants(
    purifier: Chained, t_stars: Sequence[float], steps: Sequence[int]
) -> dict[str, Chained]:
    """The defence at every t_star and number of steps that go together."""
    if not t_stars or not steps:
        raise ValueError("the grid needs at least one t_star and one number of steps")
    plain, found = purifier.with_backprop(Checkpoint()), dict[str, Chained]()
    for t_star in t_stars:
        faults = []
        for n in steps:
            try:
                settings = replace(plain.settings, t_star=t_star, steps=n)
                found[_key(t_star, n)] = plain.with_settings(settings)
            except ValueError as fault:  # more steps than indices, or than the convention divides
                faults.append(fault)
        if len(faults) == len(steps):
            raise ValueError(f"none of the steps {tuple(steps)} fits: {faults[0]}") from faults[0]
    return found


def _check_attacked(attacked: Tensor, images: Images, ball: Norm) -> None:
    if attacked.shape != images.x.shape:
        raise ValueError(
            f"attacked images must have the clean ones' shape {tuple(images.x.shape)}; got "
            f"{tuple(attacked.shape)}"
        )
    outside = ~ball.contains(attacked, images.x)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {len(images)} attacked images lie outside {ball!r} or "
            f"[0, 1]: give the ball that they were made in"
        )


@dataclass(frozen=True, eq=False)
class _Pair:
    """Some images and their attacked versions, purified under the same draws."""

    model: Defended
    few: Images
    x_adv: Tensor
    draws: int
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Noise]]:
        """Clean images, attacked ones, their rows and noise; a row per image and draw."""
        device = device_of(self.model, self.few.x)
        noise = Noise.of(self.seed, self.few.index).fold("purification").draws(self.draws)
        image = torch.arange(len(self.few)).repeat_interleave(self.draws)
        for part in slices(len(image), rows_at_once(self.few.x)):
            at = image[part]
            yield self.few.x[at].to(device), self.x_adv[at].to(device), at, noise[part]

    def _gather(self, measure: Callable[..., Arrays]) -> Arrays:
        """What is measured on every row, averaged over the draws of each image."""
        with torch.no_grad():
            joined = join([measure(*row) for row in self])
        shape = (len(self.few), self.draws)
        return {k: v.reshape(*shape, *v.shape[1:]).mean(1) for k, v in joined.items()}

    def along(self, purifier: Chained) -> Arrays:
        """Distances of every state, (B, K) each, as "adversarial_l2" and so on, and "removed"."""

        def measure(x: Tensor, x_adv: Tensor, at: Tensor, noise: Noise) -> Arrays:
            chains = [list(purifier.pictures(each, noise)) for each in (x, x_adv)]
            found = [
                {**self._distances(x, clean, adv), "removed": removed(x, x_adv, clean, adv)}
                for clean, adv in zip(*chains, strict=True)
            ]
            return {k: np.stack([f[k] for f in found], 1) for k in found[0]}

        return self._gather(measure)

    def _distances(self, x: Tensor, clean: Tensor, adv: Tensor) -> Arrays:
        images = {"x": x, "clean": clean, "adv": adv}
        seen = {k: penultimate(self.model.classifier, i.clamp(0, 1)) for k, i in images.items()}
        found = {}
        for name, one, two in _PAIRS:
            apart = images[one] - images[two]
            found[f"{name}_l2"] = _norm(apart).cpu().numpy()
            found[f"{name}_linf"] = apart.flatten(1).abs().amax(1).double().cpu().numpy()
            a, b = seen[one], seen[two]
            if a is not None and b is not None:
                found[f"{name}_features"] = _norm(a - b).cpu().numpy()
        return found

    def ends(self, purifier: Purifier) -> Arrays:
        """Accuracies and effects of the whole purifier, (B,) each."""

        def measure(x: Tensor, x_adv: Tensor, at: Tensor, noise: Noise) -> Arrays:
            clean, adv = purifier(x, noise), purifier(x_adv, noise)
            y = self.few.y[at].to(x.device)
            correct = [right(self.model.classifier(i), y).double() for i in (clean, adv)]
            size = _norm(x_adv - x)
            left = torch.where(size > 0, _norm(adv - clean) / size, torch.nan)
            return {
                "accuracy_clean": correct[0].cpu().numpy(),
                "accuracy_attacked": correct[1].cpu().numpy(),
                "grid_removed": removed(x, x_adv, clean, adv),
                "grid_damage": _norm(clean - x).cpu().numpy(),
                "grid_left": left.cpu().numpy(),
            }

        return self._gather(measure)


def removed(x: Tensor, x_adv: Tensor, clean: Tensor, adv: Tensor) -> Array:
    """Share (B,) of the perturbation along itself that is gone, see NOTES."""
    delta, gap = ((a - b).flatten(1).double() for a, b in ((x_adv, x), (adv, clean)))
    square = (delta * delta).sum(1)
    kept = (gap * delta).sum(1) / square
    found: Array = torch.where(square > 0, 1.0 - kept, torch.nan).cpu().numpy()
    return found


def _norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).double().square().sum(1).sqrt()


def penultimate(classifier: nn.Module, x: Tensor) -> Tensor | None:
    """What enters the linear layer that makes the logits (B, d); None if no such layer does."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    layers = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        logits: Tensor = classifier(x)
    finally:
        for handle in handles:
            handle.remove()
    heads: list[Tensor] = [
        inputs.detach().flatten(1) for inputs, output in seen if output.shape == logits.shape
    ]
    return heads[-1] if heads else None


def _result(
    levels: list[Level],
    images: Images,
    t_stars: Sequence[float],
    steps: Sequence[int],
    joined: Arrays,
    settings: dict[str, Any],
) -> Purification:
    if np.isnan(joined["removed"]).all():
        raise ValueError(
            "every attacked image is its clean image: there is no perturbation to remove; take a "
            "stronger attack, or check its gradients"
        )
    missing = np.full(len(images), np.nan)

    def grid(name: str) -> Array:
        rows = [[joined.get(f"{name}@{_key(t, s)}", missing) for s in steps] for t in t_stars]
        return np.array(rows).transpose(2, 0, 1)

    def kinds(name: str) -> dict[str, Array]:
        start = f"{name}_"
        return {k.removeprefix(start): v for k, v in joined.items() if k.startswith(start)
                and "@" not in k}  # fmt: skip

    time, level = (np.array(column) for column in zip(*levels, strict=True))
    return Purification(
        time, level, kinds("adversarial"), kinds("clean"), kinds("gap"), joined["removed"],
        np.array(t_stars), np.array(steps),
        grid("accuracy_clean"), grid("accuracy_attacked"),
        grid("grid_removed"), grid("grid_damage"), grid("grid_left"),
        images.index.numpy(), settings,
    )  # fmt: skip
