"""How often the intervals of `depure.evaluation.statistics` hold the truth, by simulation.

    python benchmarks/coverage.py                   # 10,000 repetitions a cell, about ten minutes
    python benchmarks/coverage.py --repetitions 500 # a quick look

A cell is a number of images, a number of draws, a distribution of the images' accuracies and a
statistic. Every repetition draws new images and new draws; the truth is known in closed form. What
an image counts is taken from the library (`any_of_n`, `majority_of_k` on tables of one image), and
so are the limits. One process, one seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, binom

from depure.evaluation.statistics import any_of_n, limits, majority_of_k

Floats = npt.NDArray[np.float64]
RESULTS = Path(__file__).parent / "results"
IMAGES, DRAWS = (8, 16, 64, 256), (1, 5, 20)
MEANS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
SPREADS = (0.2, 0.5, 1.0, 2.0, 5.0, 20.0)  # a + b of Beta(a, b)


@dataclass(frozen=True)
class Kind:
    """A distribution of the images' accuracies: a Beta, or up to two points with their shares."""

    name: str
    beta: tuple[float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()  # accuracy, share

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        """Accuracies of so many images."""
        if self.beta is not None:
            return rng.beta(*self.beta, shape)
        (first, share), *rest = self.points
        return np.where(rng.random(shape) < share, first, rest[0][0] if rest else first)

    def right(self, k: int) -> Floats:
        """Chances that 0..k of k draws of one new image are right, (k + 1,)."""
        if self.beta is not None:
            return np.asarray(betabinom.pmf(np.arange(k + 1), k, *self.beta))
        parts = [share * binom.pmf(np.arange(k + 1), k, p) for p, share in self.points]
        return np.asarray(np.sum(parts, axis=0))


@dataclass(frozen=True)
class Cell:
    """What one cell found."""

    statistic: str
    images: int
    draws: str
    kind: str
    truth: float
    coverage: float
    width: float  # relative to the normal interval that knows the true spread


def kinds(images: int) -> Iterator[Kind]:
    """All distributions for so many images: those of rare kinds are rare for that number."""
    for mean, spread in product(MEANS, SPREADS):
        a, b = mean * spread, (1 - mean) * spread
        yield Kind(f"Beta({a:.3g}, {b:.3g})", beta=(a, b))
    for mean in MEANS:
        yield Kind(f"all images at {mean:g}", points=((mean, 1.0),))
        yield Kind(f"certain, {mean:g} of them right", points=((1.0, mean), (0.0, 1 - mean)))
    for most, other, number in product((0.02, 0.5, 0.98), (0.0, 1.0), (0.3, 1.0, 2.9, 3.1, 4.0)):
        share = number / images
        name = f"{number:g} of {images} images at {other:g}, else {most:g}"
        yield Kind(name, points=((other, share), (most, 1 - share)))


@cache
def counted(draws: int) -> dict[str, Floats]:
    """What an image with 0..draws right draws counts in every statistic, from the library."""
    tables = [np.arange(draws)[None] < right for right in range(draws + 1)]
    curves = np.array([[e.value for e in any_of_n(t)] for t in tables])
    votes = np.array([[e.value for e in majority_of_k(t.astype(int), [1])] for t in tables])
    tries = sorted({1, 2, 5, 10, draws} & set(range(1, draws + 1)))
    found = {f"any of {n}" if n > 1 else "mean": curves[:, n - 1] for n in tries}
    odd = [k for k in (3, 5, 19) if k <= draws]
    return found | {f"majority of {k}": votes[:, k - 1] for k in odd}


def truth_of(statistic: str, kind: Kind) -> float:
    """The mean over new images under new draws."""
    if statistic == "mean":
        return float(kind.right(1)[1])
    k = int(statistic.rsplit(" ", 1)[1])
    chances = kind.right(k)
    return float(chances[k] if statistic.startswith("any") else chances[k // 2 + 1 :].sum())


def judged(values: Floats, truth: float) -> tuple[float, float]:
    """Coverage and relative width for values (n_images, repetitions) in [0, 1]."""
    low, high = limits(values, np.ones(len(values)))
    held = (low - 1e-12 <= truth) & (truth <= high + 1e-12)
    spread = max(float(values.mean(axis=0).std()), 1e-9)
    return float(held.mean()), float((high - low).mean() / (2 * 1.95996 * spread))


def accuracies(repetitions: int, rng: np.random.Generator) -> Iterator[Cell]:
    """Cells of `mean_accuracy`, `any_of_n` and `majority_of_k`."""
    for images in IMAGES:
        for kind in kinds(images):
            chance = kind.sample(rng, (images, repetitions))
            for draws in DRAWS:
                right = rng.binomial(draws, chance)
                for statistic, values in counted(draws).items():
                    truth = truth_of(statistic, kind)
                    found = judged(values[right], truth)
                    yield Cell(statistic, images, str(draws), kind.name, truth, *found)


Pair = Callable[[np.random.Generator, tuple[int, int]], tuple[Floats, Floats]]


def pairs(images: int) -> Iterator[tuple[str, Pair, float]]:
    """Two defences over the same images: name, their accuracies, the true difference."""
    for scale in (0.2, 1.0, 5.0):

        def shared(
            rng: np.random.Generator, shape: tuple[int, int], scale: float = scale
        ) -> tuple[Floats, Floats]:
            both = rng.beta(0.7 * scale, 0.3 * scale, shape)
            return both, both

        def shifted(
            rng: np.random.Generator, shape: tuple[int, int], scale: float = scale
        ) -> tuple[Floats, Floats]:
            one = rng.beta(0.7 * scale, 0.3 * scale, shape)
            return 0.7 * one + 0.3, 0.7 * one

        yield f"equal, Beta of a + b = {scale:g}", shared, 0.0
        yield f"0.3 apart, Beta of a + b = {scale:g}", shifted, 0.3
    for number, size in product((0.3, 1.0, 2.9, 3.1, 4.0), (1.0, 0.3)):
        share = number / images

        def rare(
            rng: np.random.Generator, shape: tuple[int, int], s: float = share, d: float = size
        ) -> tuple[Floats, Floats]:
            return np.ones(shape), 1.0 - d * (rng.random(shape) < s)

        yield f"{number:g} of {images} images lose {size:g}", rare, share * size
    for share in (0.02, 0.5, 0.9, 1.0):

        def lost(
            rng: np.random.Generator, shape: tuple[int, int], s: float = share
        ) -> tuple[Floats, Floats]:
            return np.ones(shape), 1.0 * (rng.random(shape) >= s)

        yield f"{share:g} of the images lost", lost, share


def differences(repetitions: int, rng: np.random.Generator) -> Iterator[Cell]:
    """Cells of `difference`: per-image differences, scaled to [0, 1]."""
    for images in IMAGES:
        for name, sample, truth in pairs(images):
            one, other = sample(rng, (images, repetitions))
            for first, second in ((1, 1), (5, 20), (20, 20)):
                gap = rng.binomial(first, one) / first - rng.binomial(second, other) / second
                found = judged((gap + 1) / 2, (truth + 1) / 2)
                yield Cell("difference", images, f"{first} and {second}", name, truth, *found)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def group_of(cell: Cell) -> str:
    return cell.statistic.split(" ")[0]


def markdown(cells: list[Cell], repetitions: int) -> str:
    """Summary by statistic and images, the lowest cells, and the cell of rare events."""
    summary = []
    for group, images in product(("mean", "any", "majority", "difference"), IMAGES):
        some = [c for c in cells if group_of(c) == group and c.images == images]
        low = min(some, key=lambda c: c.coverage)
        likely = [c.width for c in some if c.images * min(c.truth, 1 - c.truth) >= 5]
        summary.append([
            group, str(images), str(len(some)), percent(low.coverage),
            percent(float(np.mean([c.coverage for c in some]))),
            f"{np.median(likely):.2f}" if likely else "-",
        ])  # fmt: skip
    head = ["statistic", "images", "draws", "accuracies", "truth", "covered"]
    ranked = sorted(cells, key=lambda c: c.coverage)[:12]
    rare = [c for c in cells if c.kind == "Beta(0.2, 1.8)" and c.images == 16 and c.draws == "5"]
    mean = percent(float(np.mean([c.coverage for c in cells])))
    error = 100 * (0.95 * 0.05 / repetitions) ** 0.5
    return (
        f"# Coverage of the 95 % intervals\n\n`python benchmarks/coverage.py --repetitions "
        f"{repetitions}`, seed 0: {len(cells):,} cells of {repetitions:,} repetitions (standard "
        f"error of a cell {error:.1f} points). Lowest coverage {percent(ranked[0].coverage)} %, "
        f"mean {mean} %. The width is relative to the normal interval that knows the true spread: "
        f"the median of the cells in which at least five images are expected right and five "
        f"wrong, the only ones for which that interval means anything.\n\n"
        + table(["statistic", "images", "cells", "lowest, %", "mean, %", "width"], summary)
        + "\n## The lowest cells\n\n"
        + table(head, [row(c) for c in ranked])
        + "\n## Rare events: accuracies Beta(0.2, 1.8), 16 images, 5 draws\n\n"
        + table(head, [row(c) for c in rare])
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def row(cell: Cell) -> list[str]:
    return [
        cell.statistic, str(cell.images), cell.draws, cell.kind, f"{cell.truth:.3g}",
        percent(cell.coverage),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage.md")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cells = [*accuracies(args.repetitions, rng), *differences(args.repetitions, rng)]
    text = markdown(cells, args.repetitions)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
