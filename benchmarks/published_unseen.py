"""Our StAdv, ReColorAdv, PPGD, LPA and LowFrequency against the published programs.

    git clone https://github.com/cassidylaidlaw/perceptual-advex perceptual-advex
    git clone https://github.com/cassidylaidlaw/ReColorAdv ReColorAdv
    git clone https://github.com/andrekassis/DiffBreak DiffBreak
    python benchmarks/published_unseen.py --perceptual-advex perceptual-advex \\
        --recoloradv ReColorAdv --diffbreak DiffBreak --data cifar/test \\
        --classifier small-cnn:runs/cifar/at/classifier.safetensors --images 500

The model is deterministic: a classifier without purifier (see attacks_vs_published.py for how the
small network is trained). Images it gets wrong count as wrong for both; the rest are attacked by
both. Each side's images are kept in --cache as soon as they are made, so that an interrupted run
goes on where it was; the page tabulates what is there. Rows of programs not given are left out.
How the published programs are run is in published_unseen_programs.py.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gradients import RESULTS, table
from measure import machine
from published_unseen_programs import (
    Published,
    Wrapped,
    checks,
    published_lf,
    published_lpa,
    published_ppgd,
    published_recolor,
    published_stadv,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depure.attacks import (
    LPA,
    PPGD,
    Attack,
    Case,
    Expected,
    LowFrequency,
    ReColorAdv,
    StAdv,
    Watch,
)
from depure.attacks.ascent import Best
from depure.data import image_folder
from depure.defences import Defended
from depure.evaluation.statistics import difference
from depure.networks.features.distance import FeatureDistance
from depure.noise import Noise
from depure.purifiers.base import Identity
from depure.threat import Ball, Flow, Linf, Perceptual
from depure.zoo import load_classifier


@dataclass(frozen=True)
class Altered(Attack):
    """Ours with one name of its code replaced, to find what a difference comes from."""

    attack: Attack
    how: str
    name: str = field(repr=False)
    value: object = field(repr=False)

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        return self.attack.balls

    def trace_length(self, case: Case) -> int:
        return self.attack.trace_length(case)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        with mock.patch(self.name, self.value):
            return self.attack(case.model, case.x, case.y, case.ball, case.noise, watch=watch)


def last(attack: Attack) -> Attack:
    """Ours proposing its last iterate, as the published do, rather than its best."""

    def newest(best: Best, x: Tensor, seen: Expected, allowed: Tensor | None = None) -> Best:
        return Best(x, seen)

    return Altered(attack, "last iterate", "depure.attacks.ascent.Best.or_better", newest)


@dataclass(frozen=True)
class Row:
    """One line of the table: an attack, ours and theirs, in one threat, and what differs."""

    name: str
    ball: Ball
    ours: Attack
    theirs: Published | None  # None: its clone is not given
    settings: str  # of theirs, by which its images are known in the cache
    differs: str
    cut: bool = False  # whether theirs is projected into our bound, being made for another


@dataclass(frozen=True)
class Bench:
    """What both sides attack: the images that the classifier gets right."""

    classifier: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    args: argparse.Namespace

    def file(self, what: str) -> Path:
        """Where the images of a side are kept."""
        known = f"{self.args.classifier} {self.args.data} {self.args.images} {self.args.seed}"
        code = hashlib.sha256(f"{known} {what}".encode()).hexdigest()[:12]
        name = re.sub("[^a-z]+", "-", what.lower())[:30]
        return Path(self.args.cache) / f"{name}-{code}.safetensors"

    def has(self, row: Row) -> bool:
        """Whether both sides of a row are kept."""
        return all(self.file(what).exists() for what in sides(row))

    def made(self, what: str, make: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """Adversarial images and the CPU seconds they took, from the cache if they are there."""
        file = self.file(what)
        if not file.exists():
            start = time.process_time()
            found = make().detach().contiguous()
            spent = {"what": what, "seconds": str(time.process_time() - start)}
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": found}, file, spent)
        with safe_open(file, "pt") as kept:
            return kept.get_tensor("x"), float(kept.metadata()["seconds"])


def bound_of(ball: Ball) -> str:
    """The threat in a word."""
    return f"{type(ball).__name__} {getattr(ball, 'eps', '')}"


def sides(row: Row) -> tuple[str, str]:
    """What the images of ours and of theirs are known by in the cache."""
    return f"ours {row.ours} {bound_of(row.ball)}", f"published {row.settings}"


def spatial(args: argparse.Namespace) -> list[Row]:
    """StAdv, with the border going on beyond the image (ours) and black there (published)."""
    ball, ours = Flow(args.flow), StAdv(steps=100, lr=0.01, eot=1, smooth=0.0025 / args.flow)
    free = replace(ours, smooth=0.0)
    clones = args.perceptual_advex, args.recoloradv
    return [
        Row("StAdv", ball, ours, published_stadv(*clones, ball, ours, "border"),
            f"stadv border {ball} {ours}", "none: there `padding_mode` is set to \"border\""),
        Row("StAdv, last", ball, last(ours), published_stadv(*clones, ball, ours, "border"),
            f"stadv border {ball} {ours}", "none: as above, and ours proposes its last iterate"),
        Row("StAdv, smooth 0", ball, free, published_stadv(*clones, ball, free, "border"),
            f"stadv border {ball} {free}", "none: as above, no penalty on either side"),
        Row("StAdv, as published", ball, ours, published_stadv(*clones, ball, ours, "zeros"),
            f"stadv zeros {ball} {ours}",
            "the published flow fetches black from beyond the border, so that all images leave our "
            "bound there: compare `robust, published`"),
    ]  # fmt: skip


def colour(args: argparse.Namespace) -> list[Row]:
    """ReColorAdv in RGB, and the published CIE-LUV one cut to our bound."""
    ball, clones = Linf(args.colour), (args.perceptual_advex, args.recoloradv)
    ours = ReColorAdv(steps=100, lr=0.01, eot=1, smooth=0.0036 / args.colour)
    slow, free = replace(ours, lr=0.001), replace(ours, smooth=0.0)
    return [
        Row("ReColorAdv, RGB", ball, ours, published_recolor(*clones, ball, ours, "rgb"),
            f"recolor rgb {ball} {ours}", "none: there `RGBColorSpace` and 16 x 16 x 16 nodes"),
        Row("ReColorAdv, RGB, last", ball, last(ours),
            published_recolor(*clones, ball, ours, "rgb"), f"recolor rgb {ball} {ours}",
            "none: as above, and ours proposes its last iterate"),
        Row("ReColorAdv, RGB, lr 0.001", ball, slow, published_recolor(*clones, ball, slow, "rgb"),
            f"recolor rgb {ball} {slow}", "none: as above, at the published learning rate"),
        Row("ReColorAdv, RGB, smooth 0", ball, free,
            published_recolor(*clones, ball, free, "rgb"), f"recolor rgb {ball} {free}",
            "none: as above, no penalty on either side"),
        Row("ReColorAdv, LUV cut", ball, ours, published_recolor(*clones, ball, slow, "luv"),
            f"recolor luv {ball} {slow}",
            "published as it is (CIE-LUV, 16 x 32 x 32 nodes, lr 0.001), then cut to our bound",
            cut=True),
        Row("ReColorAdv, LUV", ball, ours, published_recolor(*clones, ball, slow, "luv"),
            f"recolor luv {ball} {slow}",
            "as above, not cut: another threat than ours, compare `robust, published`"),
    ]  # fmt: skip


def perceptual(args: argparse.Namespace, distance: FeatureDistance) -> list[Row]:
    """PPGD, LPA and LF, bounded by the features of the classifier itself."""
    ball, clones = Perceptual(distance, args.features), (args.perceptual_advex, args.recoloradv)
    ppgd, lpa, lf = PPGD(eot=1), LPA(eot=1), LowFrequency(eot=1)
    fine = Altered(lf, "colour 0.05", "depure.attacks.unseen.low_frequency._COLOUR", 0.05)
    bound = f"features {ball.eps} {distance.layers}"
    return [
        Row("PPGD", ball, ppgd, published_ppgd(*clones, ball, ppgd, args.seed),
            f"ppgd {bound} {ppgd} margin",
            "none: there kappa = inf; products with J are finite differences there, exact here"),
        Row("PPGD, last", ball, last(ppgd), published_ppgd(*clones, ball, ppgd, args.seed),
            f"ppgd {bound} {ppgd} margin", "none: as above, and ours proposes its last iterate"),
        Row("PPGD, kappa 1", ball, ppgd, published_ppgd(*clones, ball, ppgd, args.seed, kappa=1.0),
            f"ppgd {bound} {ppgd} kappa 1",
            "the published default: its loss is flat once an image is wrong by a margin of 1"),
        Row("LPA", ball, lpa, published_lpa(*clones, ball, lpa, args.seed),
            f"lpa {bound} {lpa} margin",
            "none: there kappa = inf; it stops after the step that follows the first success"),
        Row("LowFrequency", ball, lf, published_lf(args.diffbreak, ball, lf, 0.1),
            f"lf {bound} {lf} colour 0.1",
            "none: there our distance for LPIPS, colour spread 0.1 as ours; it takes images "
            "one by one and stops at the first success"),
        Row("LowFrequency, colour 0.05", ball, lf, published_lf(args.diffbreak, ball, lf, 0.05),
            f"lf {bound} {lf} colour 0.05",
            "as above, there with the colour spread 0.05 of its own settings"),
        Row("LowFrequency, colour 0.05 on both", ball, fine,
            published_lf(args.diffbreak, ball, lf, 0.05), f"lf {bound} {lf} colour 0.05",
            "none: as above, 0.05 on both sides"),
    ]  # fmt: skip


def outside(ball: Ball, x_adv: Tensor, x: Tensor) -> tuple[int, str]:
    """How many images are out of the bound, and the largest of what is bounded."""
    count = int((~ball.contains(x_adv, x)).sum())
    if isinstance(ball, Perceptual):
        return count, f"{float(ball.distance_of(x_adv, x).max()):.4f}"
    return count, "" if isinstance(ball, Flow) else f"{float(ball.size(x_adv - x).max()):.4f}"


def compare(row: Row, bench: Bench) -> dict[str, Any]:
    """Both sides of a row, judged."""
    x, y, args = bench.x, bench.y, bench.args
    model, noise = Defended(Identity(), bench.classifier), Noise.of(args.seed, bench.index)
    assert row.theirs is not None
    program, (our, their) = row.theirs, sides(row)
    ours, mine = bench.made(our, lambda: row.ours(model, x, y, row.ball, noise))
    theirs, yours = bench.made(their, lambda: program(bench.classifier, x, y))
    theirs = row.ball.project(theirs, x) if row.cut else theirs
    with torch.no_grad():
        a, b = (bench.classifier(found).argmax(1) == y for found in (ours, theirs))
    # What left the bound has broken nothing.
    a, kept = a | ~row.ball.contains(ours, x), b | ~row.ball.contains(theirs, x)
    wrong = args.images - len(x)
    full = [torch.cat([r, r.new_zeros(wrong)])[:, None].numpy() for r in (a, kept)]
    return {
        "row": row, "ours": int(a.sum()), "published": int(b.sum()), "within": int(kept.sum()),
        "difference": difference(full[0], full[1]), "bound": bound_of(row.ball),
        "seconds": (mine, yours),
        "only ours": int((kept & ~a).sum()), "only published": int((a & ~kept).sum()),
        "outside": (outside(row.ball, ours, x), outside(row.ball, theirs, x)),
    }  # fmt: skip


def line(found: dict[str, Any], n: int) -> list[str]:
    """A row of the table."""
    row, gap, sides = found["row"], found["difference"], found["outside"]
    return [
        row.name, found["bound"], f"{found['ours'] / n:.1%}", f"{found['published'] / n:.1%}",
        f"{found['within'] / n:.1%}",
        f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]",
        f"{found['only ours']} / {found['only published']}",
        " / ".join(f"{count} ({most})" if most else str(count) for count, most in sides),
        "{:.0f} / {:.0f}".format(*found["seconds"]),
    ]  # fmt: skip


def markdown(done: list[dict[str, Any]], bench: Bench, equal: Sequence[str]) -> str:
    """The page."""
    args, n = bench.args, bench.args.images
    command = "python " + shlex.join(["benchmarks/published_unseen.py", *sys.argv[1:]])
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    head = ["attack", "bound", "robust, ours", "robust, published", "published, in the bound"]
    head += ["ours - published, points [95 %]", "only ours / only published breaks"]
    head += ["outside (largest), ours / published", "CPU s, ours / published"]
    about = [f"- {f['row'].name}: {f['row'].differs}. `{f['row'].ours}`" for f in done]
    return (
        f"# Attacks beyond pixel balls against the published programs\n\n`{command}`; {where}.\n\n"
        f"{n} images of CIFAR-10, classifier `{args.classifier}` (clean accuracy "
        f"{len(bench.x) / n:.1%}), seed {args.seed}; published programs "
        f"{', '.join(revisions(args))}. Their code runs as it is, with stand-ins for modules that "
        f"it imports for other purposes, and at the options named below. The perceptual attacks "
        f"compare the outputs of the classifier's own layers "
        f"{', '.join(FeatureDistance(bench.classifier).layers)}. Both sides have the same "
        f"iterations, bound, margin loss, learning rate and penalty. Ours proposes its best "
        f"iterate; the published StAdv, ReColorAdv and PPGD return their last (mister_ed's PGD "
        f"collects the best, then returns the last); rows \"last\" take that away. PPGD and LPA "
        f"start at random, once, and not at the same points. `robust, published` is what the "
        f"program hands over; `in the bound` counts as broken only images within the bound, and "
        f"the difference is to that: below 0, ours is the stronger. CPU seconds were taken on a "
        f"busy machine, on {len(bench.x)} images.\n\n"
        + table(head, [line(f, n) for f in done])
        + "\n\n## What differs, and our settings\n\n" + "\n".join(about)
        + "\n\n## The threats are the same: checked on random numbers\n\n"
        + "\n".join(f"- {text}" for text in equal) + "\n"
    )  # fmt: skip


def revisions(args: argparse.Namespace) -> list[str]:
    """The commits of the clones; unpacked archives tell theirs in a file COMMIT."""
    found = []
    for folder in (args.perceptual_advex, args.recoloradv, args.diffbreak):
        if folder is None:
            continue
        head = folder / "COMMIT" if (folder / "COMMIT").exists() else folder / ".git" / "HEAD"
        text = head.read_text().strip()
        if text.startswith("ref: "):
            text = (folder / ".git" / text[5:]).read_text().strip()
        found.append(f"{folder.name} {text[:7]}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--perceptual-advex", type=Path, help="clone of perceptual-advex")
    parser.add_argument("--recoloradv", type=Path, help="clone of ReColorAdv; needed for the above")
    parser.add_argument("--diffbreak", type=Path, help="clone of DiffBreak")
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--classifier", required=True, help="ARCH:FILE, as for depure evaluate")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow", type=float, default=0.05, help="bound of StAdv")
    parser.add_argument("--colour", type=float, default=0.06, help="bound of ReColorAdv")
    parser.add_argument("--features", type=float, default=0.3, help="bound of the distance")
    parser.add_argument(
        "--only",
        default="",
        help="rows whose name has this (a regular expression); rows already made are shown too",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/published_unseen"))
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks_vs_published_unseen.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    images = image_folder(args.data, limit=args.images, seed=args.seed)
    classifier = load_classifier(args.classifier)
    with torch.no_grad():
        kept = images[classifier(images.x).argmax(1) == images.y]
    bench = Bench(classifier, kept.x, kept.y, kept.index, args)
    distance = FeatureDistance(classifier)
    equal = checks(
        args.perceptual_advex, args.recoloradv, Wrapped(classifier, distance.layers), kept.x[:64]
    )
    done: list[dict[str, Any]] = []
    for row in [*spatial(args), *colour(args), *perceptual(args, distance)]:
        if row.theirs is None:
            print(f"{row.name}: left out, its program is not given")
        elif re.search(args.only, row.name) or bench.has(row):
            done.append(compare(row, bench))
            print(line(done[-1], args.images), flush=True)
            args.out.write_text(markdown(done, bench, equal))


if __name__ == "__main__":
    main()
