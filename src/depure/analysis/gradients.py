"""How good attack gradients are: their noise, their agreement, their size along the chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
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
from depure.analysis.stochasticity import check_rising, named_models, settings_of
from depure.analysis.store import Array, Arrays, Cells
from depure.analysis.transfer import (
    Setting,
    accuracy_of,
    as_tuple,
    attacked,
    check_enough,
    mean_of,
    share,
    table_of,
)
from depure.attacks import LOSSES, PGD, expected_grad
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.diffusion.backprop import Adjoint, Backprop, Checkpoint, Straight, Surrogate
from depure.diffusion.backprop.base import walk
from depure.diffusion.backprop.replay import Flow, leaves_of, pull_back
from depure.diffusion.chain import has_gradient
from depure.evaluation.shards import base_noise
from depure.evaluation.statistics import Interval, difference
from depure.noise import Noise
from depure.purifiers import BPDA, Chained
from depure.records import came
from depure.rows import rows_at_once
from depure.threat import Norm, Threat

NOTES = (
    "snr(k) = |g| / sqrt(E |g_k - g|^2) with g the expected gradient and g_k the mean of k draws: "
    "|g|^2 is that of the reference mean less its own variance (0 if that is negative), the rest "
    "the sample variance between disjoint groups of k draws",
    "cosine(k) is that of g_k with the mean of the reference draws, whose own cosine with g is "
    "about `ceiling`",
    "agreement is per draw, of an approximate with the exact gradient under the same noise",
    "norms are L2 norms of d loss / d x_t in [-1, 1] space, x_t the state entering a reverse step",
    "inference: the papers define no such measures; the definitions are ours",
)


@dataclass(frozen=True, eq=False)
class GradientQuality:
    """One defence's gradients at n images: K numbers of draws, A approximations, T steps, E EoTs.

    NaN where a gradient is zero or not finite.
    """

    snr: Array  # (n, K)
    cosine: Array  # (n, K)
    ceiling: Array  # (n,), largest cosine to be expected with that many reference draws
    approximations: tuple[str, ...]  # (A,)
    agreement: Array  # (n, A), cosine with the exact gradient, mean over draws
    signs: Array  # (n, A), share of pixels with the same sign, mean over draws
    norms: Array  # (n, T + 1), geometric means over draws; T = 0 and nothing without a chain
    accuracy: Array  # (n, E), share of the judge's draws that are right
    judged: int  # the judge's draws

    def needed(self, eots: Array) -> int:
        """The fewest EoT draws that no larger number beats reliably (paired 95 % interval)."""
        tables = [table_of(self.accuracy[:, i], self.judged) for i in range(len(eots))]
        return next(
            int(eot)
            for i, eot in enumerate(eots)
            if all(difference(tables[i], later).low <= 0.0 for later in tables[i + 1 :])
        )

    def gain(self) -> list[Interval]:
        """Accuracy under each EoT less that under the largest: paired, with 95 % interval."""
        tables = [table_of(a, self.judged) for a in self.accuracy.T]
        return [difference(t, tables[-1]) for t in tables]

    def estimate(self, name: str) -> Array:
        """(columns, 3): mean of a measure over images with its 95 % interval; norms in log10."""
        values = getattr(self, name)
        if name == "accuracy":
            return np.array([as_tuple(accuracy_of(a, self.judged)) for a in values.T])
        if name == "norms":
            values = np.log10(np.where(values > 0, values, np.nan))
        return np.array([as_tuple(mean_of(column)) for column in values.T]).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class Gradients:
    """What `gradients` found, by the name of the model."""

    models: dict[str, GradientQuality]
    draws: Array  # (K,), of a mean gradient
    eots: Array  # (E,), of an attack
    index: Array  # (n,), data-set indices
    settings: dict[str, Any]
    axes: ClassVar[tuple[str, ...]] = ("image", "draws, approximation, step or EoT")
    notes: ClassVar[tuple[str, ...]] = NOTES

    def arrays(self) -> Arrays:
        """All arrays by name, those of the first model as "0_snr" and so on, with estimates."""
        found: Arrays = {"models": np.array(list(self.models))}
        for i, one in enumerate(self.models.values()):
            found |= {f"{i}_{f.name}": np.asarray(getattr(one, f.name)) for f in fields(one)}
            for name in ("snr", "cosine", "agreement", "signs", "norms", "accuracy"):
                found[f"{i}_{name}_estimate"] = one.estimate(name)
        return {**found, "draws": self.draws, "eots": self.eots, "index": self.index}


def gradients(
    models: Defended | Mapping[str, Defended],
    images: Images,
    ball: Norm,
    *,
    attack: PGD | None = None,
    draws: Sequence[int] = (1, 2, 4, 8, 16, 32),
    reference: int = 128,
    groups: int = 4,
    approximations: Mapping[str, Backprop] | None = None,
    samples: int = 4,
    eots: Sequence[int] = (1, 2, 5, 10, 20),
    judge: int = 20,
    knows: tuple[str, ...] = (),
    seed: int = 0,
    batch: int = 32,
    cells: Cells | None = None,
) -> Gradients:
    """Noise and agreement of gradients, their norm along the chain, and what EoT draws buy.

    Args:
        models: a defence, or several by name.
        images: n >= 2 images.
        ball: what the attack may change.
        attack: settings of all attacks but `eot`; its loss is the one differentiated. PGD-20 by
            default.
        draws: of a mean gradient, rising.
        reference: independent draws of the expected gradient.
        groups: mean gradients of the largest number of draws; smaller ones have more.
        approximations: loop drivers to compare with the exact gradient, by name, for `Chained`
            purifiers. By default BPDA, a surrogate of half the steps, and the adjoint where it
            is defined and torchsde is installed; BPDA alone for other purifiers.
        samples: draws of agreement and norms.
        eots: EoT draws of the attacks, rising, at equal steps; `judge` fresh draws judge them.
        knows: the stages whose noise the attacker knows; their noise is held throughout.
        seed, batch: of all noise; images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: no noise is unknown, fewer than 2 images, or numbers out of range or order.
    """
    attack = PGD() if attack is None else attack
    named, threat = named_models(models), Threat(ball, knows)
    check_enough(images)
    check_rising("draws", draws)
    check_rising("eots", eots)
    counts = {"reference": reference, "groups": groups, "samples": samples, "judge": judge}
    check_counts(**counts, batch=batch, draws=draws[0], eots=eots[0])
    if min(reference, groups) < 2:
        raise ValueError(f"a variance needs 2; got reference {reference} and groups {groups}")
    _check_fresh(named, knows)
    variants = {name: _variants(model, approximations, images) for name, model in named.items()}
    chains = sum(isinstance(m.purifier, Chained) for m in named.values())
    pieces = chains + (1 + len(eots)) * len(named) + sum(map(bool, variants.values()))
    cells = expect_cells(cells, pieces * len(slices(len(images), batch)))
    work = _Work(images, threat, attack, tuple(draws), tuple(eots), counts, seed, batch, cells)
    found = {name: work.measured(model, variants[name]) for name, model in named.items()}
    settings = {**settings_of(named, images, attack, threat, judge, seed), **counts}
    return Gradients(found, np.array(draws), np.array(eots), images.index.numpy(), settings)


def _check_fresh(named: Mapping[str, Defended], knows: tuple[str, ...]) -> None:
    for name, model in named.items():
        if set(model.stages) <= set(knows):
            raise ValueError(
                f"the attacker knows all noise of {name!r} ({', '.join(knows)}), so that there is "
                f"one gradient and nothing to average: leave a stage out of knows"
            )


def _variants(
    model: Defended, given: Mapping[str, Backprop] | None, images: Images
) -> dict[str, Defended]:
    """The defence under every approximation, by name; none if it has no exact gradient."""
    purifier = model.purifier
    if isinstance(purifier, Chained):
        x = images.x[:1].to(device_of(model, images.x))
        drivers = default_approximations(purifier, x) if given is None else dict(given)
        return {
            name: Defended(purifier.with_backprop(driver), model.classifier)
            for name, driver in drivers.items()
        }
    if given:
        raise ValueError(
            f"approximations are loop drivers of a Chained purifier; got {came(purifier)}: none fit"
        )
    return {"BPDA": Defended(BPDA(purifier), model.classifier)} if purifier.exact else {}


def default_approximations(purifier: Chained, x: Tensor) -> dict[str, Backprop]:
    """BPDA, a surrogate of about half the steps that fits, and the adjoint where it is defined.

    Args:
        purifier: what is to be approximated.
        x: an image (1, C, H, W) to write its chain for.
    """
    found: dict[str, Backprop] = {"BPDA": Straight()}
    with torch.no_grad():
        chain = purifier.chain(x, Noise.of(0, range(1)))
    steps = sum(link.round == 0 for link in chain.links)
    for fewer in range(steps // 2 if chain.shorter else 0, 0, -1):
        with suppress(ValueError):  # numbers of steps that do not fit the convention
            purifier.with_backprop(Surrogate(fewer))
            found[f"surrogate, {fewer} of {steps} steps"] = Surrogate(fewer)
            break
    if chain.sde is not None and chain.sde.last_sigma > 0 and find_spec("torchsde"):
        found["adjoint"] = Adjoint()
    return found


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything that a measurement needs besides the defence."""

    images: Images
    threat: Threat
    attack: PGD
    draws: tuple[int, ...]
    eots: tuple[int, ...]
    counts: dict[str, int]
    seed: int
    batch: int
    cells: Cells

    def measured(self, model: Defended, variants: Mapping[str, Defended]) -> GradientQuality:
        """All measures of one defence."""
        others = [repr(v.purifier) for v in variants.values()]
        asked = {"draws": self.draws, "counts": self.counts, "others": others}
        whole = settings_of({"": model}, self.images, self.attack, self.threat, 1, self.seed)
        label = short_hash({**whole, "asked": asked})
        exact, empty = exact_of(model), np.zeros((len(self.images), 0))
        found = self.each(f"snr-{label}", partial(self.noise_of, model))
        if variants and exact is not None:
            found |= self.each(f"agree-{label}", partial(self.agree, exact, variants))
        if exact is not None and isinstance(exact.purifier, Chained):
            found |= self.each(f"norms-{label}", partial(self.norms, exact))
        judged = [self.evaluated(model, eot) for eot in self.eots]
        return GradientQuality(
            found["snr"], found["cosine"], found["ceiling"], tuple(variants),
            found.get("agreement", empty), found.get("signs", empty), found.get("norms", empty),
            np.stack([share(j, self.images) for j in judged], 1), judged[0].shape[1],
        )  # fmt: skip

    def each(self, name: str, compute: Callable[[slice], Arrays]) -> Arrays:
        """All images' arrays, a cell for every `batch` of them."""
        parts = slices(len(self.images), self.batch)
        return join([self.cells(f"{name}-{p.start}-{p.stop}", partial(compute, p)) for p in parts])

    def evaluated(self, model: Defended, eot: int) -> Array:
        """Predictions (n, R) of the judge after an attack with so many draws."""
        attack, setting = replace(self.attack, eot=eot), Setting(model, self.threat, self.seed)
        judge, batch = self.counts["judge"], self.batch
        return attacked(setting, self.images, attack, judge, batch, self.cells)["adversarial"]

    def noise(self, model: Defended, part: slice, purpose: str) -> Noise:
        """Noise of some images that no attack or judge of this seed uses."""
        base = base_noise(model, self.images.index[part], self.threat, self.seed)
        return base.fold("gradients").fold(purpose)

    def rows(self, model: Defended, part: slice, purpose: str, draws: int) -> Array:
        """Single-draw gradients (B, draws, D), float64; NaN where not finite."""
        x, y = self.images.x[part], self.images.y[part]
        device, noise = device_of(model, x), self.noise(model, part, purpose).draws(draws)
        image, loss = torch.arange(len(x)).repeat_interleave(draws), LOSSES[self.attack.loss]
        rows = x[image].to(device), y[image].to(device)
        found = expected_grad(model, *rows, loss, noise, 1)
        grad = torch.where(found.finite[:, None], found.grad.flatten(1), torch.nan)
        return grad.double().view(len(x), draws, -1).cpu().numpy()

    def noise_of(self, model: Defended, part: slice) -> Arrays:
        """Signal-to-noise ratios and cosines of EoT gradients, image by image to save memory."""
        found, many = [], self.counts["groups"] * self.draws[-1]
        for i in range(*part.indices(len(self.images))):
            one = slice(i, i + 1)
            reference = self.rows(model, one, "reference", self.counts["reference"])[0]
            drawn = self.rows(model, one, "pool", many)[0]
            found.append(eot_statistics(reference, drawn, self.draws))
        return {k: np.stack([f[k] for f in found]) for k in found[0]}

    def agree(self, exact: Defended, variants: Mapping[str, Defended], part: slice) -> Arrays:
        """Cosine and share of equal signs of every approximation, (B, A) each."""
        own, *others = (
            self.rows(model, part, "agreement", self.counts["samples"])
            for model in (exact, *variants.values())
        )
        cosines, signs = zip(*(agreement(other, own) for other in others), strict=True)
        found = {"agreement": cosines, "signs": signs}
        return {k: mean_known(np.stack(v, 1), 2) for k, v in found.items()}

    def norms(self, exact: Defended, part: slice) -> Arrays:
        """Norms of the loss's gradients by the states of the chain, (B, T + 1)."""
        x, y, samples = self.images.x[part], self.images.y[part], self.counts["samples"]
        noise, device = self.noise(exact, part, "agreement").draws(samples), device_of(exact, x)
        image, found = torch.arange(len(x)).repeat_interleave(samples), []
        for p in slices(len(image), rows_at_once(x)):
            one, its = x[image[p]].to(device), y[image[p]].to(device)
            grads = chain_gradients(exact, one, its, noise[p], self.attack.loss)
            found.append(torch.stack([g.flatten(1).double().norm(dim=1).cpu() for g in grads], 1))
        with np.errstate(divide="ignore"):
            logs = np.log(torch.cat(found).view(len(x), samples, -1).numpy())
        return {"norms": np.exp(logs.mean(1))}


def exact_of(model: Defended) -> Defended | None:
    """The same defence with exact gradients; None if there is no way to them."""
    if model.purifier.exact or not isinstance(model.purifier, Chained):
        return model if model.purifier.exact else None
    return Defended(model.purifier.with_backprop(Checkpoint()), model.classifier)


def eot_statistics(reference: Array, drawn: Array, draws: Sequence[int]) -> Arrays:
    """Signal-to-noise ratio and cosine of mean gradients, see NOTES.

    Args:
        reference: single-draw gradients (R, D), R >= 2, independent of `drawn`.
        drawn: single-draw gradients (N, D), N at least twice the largest of `draws` (K numbers).

    Returns:
        "snr" and "cosine" (K,), "ceiling" ().
    """
    mean = reference.mean(0)
    length = float(mean @ mean)
    variance = float(((reference - mean) ** 2).sum()) / (len(reference) - 1)
    signal = max(length - variance / len(reference), 0.0)
    snr, cosines = [], []
    for k in draws:
        groups = drawn[: len(drawn) // k * k].reshape(-1, k, drawn.shape[1]).mean(1)
        noise = float(((groups - groups.mean(0)) ** 2).sum()) / (len(groups) - 1)
        snr.append(np.sqrt(signal / noise) if noise > 0 else np.nan)
        cosines.append(float(mean_known(_cosine(groups, mean), 0)))
    ceiling = np.sqrt(signal / length) if length > 0 else np.nan
    return {"snr": np.array(snr), "cosine": np.array(cosines), "ceiling": np.array(ceiling)}


def agreement(grad: Array, reference: Array) -> tuple[Array, Array]:
    """Cosine and share of equal signs (...) of gradients (..., D); NaN where one is zero."""
    same, cosine = (np.sign(grad) == np.sign(reference)).mean(-1), _cosine(grad, reference)
    return cosine, np.where(np.isnan(cosine), np.nan, same)


def _cosine(one: Array, two: Array) -> Array:
    product = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    return np.asarray((one * two).sum(-1) / np.where(product > 0, product, np.nan))


def chain_gradients(
    model: Defended, x: Tensor, y: Tensor, noise: Noise, loss: str = "ce"
) -> list[Tensor]:
    """d loss / d state at every state of a purifier's chain (for `DiffPure` in [-1, 1] space).

    One, shaped as the first entry of the state, for what enters each step (after the noise that a
    round begins with), and one for the last state: T + 1. One link's graph is in memory.

    Raises:
        ValueError: the purifier is no `Chained`.
    """
    purifier = model.purifier
    if not isinstance(purifier, Chained):
        raise ValueError(f"a chain of states is that of a Chained purifier; got {came(purifier)}")
    with torch.no_grad():
        chain = purifier.prepared(x, noise)
        states = [chain.start, *walk(chain.links, chain.start, chain.context)]
    leaves = leaves_of(states[-1])
    value = LOSSES[loss](model.classifier(chain.end(leaves)), y).sum()
    wanted = [t for t in leaves if t.requires_grad]
    flow: Flow = torch.autograd.grad(value, wanted, allow_unused=True)
    steps, flows = list(zip(chain.links, states[:-1], purifier.scales(chain), strict=True)), [flow]
    for link, state, scale in reversed(steps):
        flow, _ = pull_back(link, state, chain.context, flow)
        # A link that noises its state first, x_t = alpha x + sigma z, is entered at x_t.
        flows.append([f if f is None or scale == 1.0 else f / scale for f in flow])
    first = [next(t for t in state if has_gradient(t)) for state in states]
    pairs = zip(first, reversed(flows), strict=True)
    return [torch.zeros_like(t) if f[0] is None else f[0] for t, f in pairs]
