"""Our attacks against the published programs: the same images, classifier and budgets.

    git clone https://github.com/fra31/auto-attack auto-attack
    python benchmarks/attacks_vs_published.py --published auto-attack \\
        --data cifar/test --classifier resnet56:resnet56-cifar10.safetensors --images 100

An adversarially trained network, of minutes (500 images of it are in attacks_vs_published_at.md):

    depure train adversarial --preset cifar10-small --arch small-cnn --data cifar/train \\
        --updates 700 --batch 64 --attack-steps 2 --step-size 6/255 --seed 0 --out runs/cifar/at

The model is deterministic: a classifier without purifier. Images it gets wrong count as wrong for
both; the rest are attacked by both. To compare another attack, add a `Row` in `rows`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from gradients import RESULTS, table
from measure import machine
from published_queries import published_rays, published_spsa
from torch import Tensor, nn

from depure.attacks import APGD, FAB, SPSA, RayS, Square
from depure.attacks.base import Attack
from depure.data import image_folder
from depure.defences import Defended
from depure.noise import Noise
from depure.purifiers import Identity
from depure.threat import L1, L2, Ball, Linf
from depure.zoo import load_classifier

Published = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (classifier, x, y) -> x_adv


@dataclass(frozen=True)
class Row:
    """One line of the table: an attack, ours and theirs, in one ball."""

    name: str
    ball: Ball
    ours: Attack
    theirs: Published
    seed: int | None = None  # of ours, where it is not that of the run


def published_apgd(kind: str, ball: Ball, ours: APGD, seed: int) -> Published:
    """The published APGD at the settings of ours; `kind` is its loss, or "targeted"."""

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        base = importlib.import_module("autoattack.autopgd_base")
        settings: dict[str, Any] = {
            "n_iter": ours.steps, "norm": type(ball).__name__, "eps": ball.eps, "seed": seed,
            "n_restarts": ours.restarts, "rho": ours.rho, "use_largereps": ours.shrinking,
        }  # fmt: skip
        if kind == "targeted":
            found = base.APGDAttack_targeted(classifier, n_target_classes=ours.targets, **settings)
        else:
            found = base.APGDAttack(classifier, loss=kind, **settings)
        return found.perturb(x, y)

    return attack


def apgd(ball: Ball, steps: int, seed: int, targets: int, shrinking: bool = False) -> list[Row]:
    """APGD-CE, APGD-DLR and APGD-T in one ball."""
    attacks = {
        "ce": APGD(steps, loss="ce", shrinking=shrinking),
        "dlr": APGD(steps, loss="dlr", shrinking=shrinking),
        "targeted": APGD(steps, loss="dlr", targets=targets, shrinking=shrinking),
    }
    names = {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted": f"APGD-T({targets})"}
    suffix = ", shrinking" if shrinking else ""
    return [
        Row(names[kind] + suffix, ball, ours, published_apgd(kind, ball, ours, seed))
        for kind, ours in attacks.items()
    ]


def published_fab(ball: Ball, ours: FAB, seed: int) -> Published:
    """The published FAB-T at the settings of ours."""

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        module = importlib.import_module("autoattack.fab_pt")
        found = module.FABAttack_PT(
            classifier, norm=type(ball).__name__, eps=ball.eps, n_restarts=ours.restarts,
            n_iter=ours.steps, n_target_classes=ours.targets, targeted=True, seed=seed,
            device=str(x.device),
        )  # fmt: skip
        return found.perturb(x, y)

    return attack


def published_square(ball: Ball, ours: Square, seed: int) -> Published:
    """The published Square at the settings of ours."""

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        module = importlib.import_module("autoattack.square")
        found = module.SquareAttack(
            classifier, norm=type(ball).__name__, eps=ball.eps, n_queries=ours.steps,
            p_init=ours.p_init, resc_schedule=ours.rescale, seed=seed, device=str(x.device),
        )  # fmt: skip
        return found.perturb(x, y)

    return attack


def other(ball: Ball, args: argparse.Namespace) -> list[Row]:
    """FAB-T and Square in one ball; Square from three seeds, whose luck differs most."""
    fab = FAB(min(args.targets, 3), args.steps, eot=1)
    square = Square(args.queries, 1)
    found = [Row(f"FAB-T({fab.targets})", ball, fab, published_fab(ball, fab, args.seed))]
    if isinstance(ball, L1):
        return found
    for seed in range(args.seed, args.seed + 3):
        theirs = published_square(ball, square, seed)
        found.append(Row(f"Square({args.queries}), seed {seed}", ball, square, theirs, seed))
    return found


def black_box(ball: Linf, args: argparse.Namespace) -> list[Row]:
    """RayS and SPSA, where clones of the published programs are given."""
    found = []
    if args.rays is not None:
        rays = RayS(args.queries, eot=1)
        theirs = published_rays(args.rays, ball, rays)
        found.append(Row(f"RayS({args.queries})", ball, rays, theirs))
    if args.advertorch is not None:
        spsa = SPSA(steps=max(args.queries // 128, 1), samples=64)
        theirs = published_spsa(args.advertorch, ball, spsa, args.seed)
        found.append(Row(f"SPSA({spsa.steps} x {spsa.samples})", ball, spsa, theirs))
    return found


def rows(args: argparse.Namespace) -> list[Row]:
    """Every comparison, in the three balls."""
    linf, l2, l1 = args.eps
    steps, seed, targets = args.steps, args.seed, args.targets
    balls: tuple[Ball, ...] = (Linf(linf), L2(l2), L1(l1))
    return [
        *(row for ball in balls for row in apgd(ball, steps, seed, targets)),
        *apgd(balls[2], steps, seed, targets, shrinking=True)[:1],
        *(row for ball in balls for row in other(ball, args)),
        *black_box(Linf(linf), args),
    ]


def judged(classifier: nn.Module, x: Tensor, y: Tensor, ball: Ball, x_adv: Tensor) -> Tensor:
    """Which images survive (B,); an image that left the ball is the program's error."""
    if not ball.contains(x_adv, x).all():
        worst = float(ball.size(x_adv - x).max())
        warnings.warn(f"{ball}: an image left the ball (norm {worst:.6f})", stacklevel=2)
    with torch.no_grad():
        return classifier(x_adv).argmax(1) == y


def compare(row: Row, classifier: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Any]:
    """Run both on images that the classifier gets right."""
    model = Defended(Identity(), classifier)
    if row.seed is not None:
        noise = noise.fold("seed", row.seed)
    start = time.process_time()
    ours = row.ours(model, x, y, row.ball, noise)
    middle = time.process_time()
    theirs = row.theirs(classifier, x, y)
    end = time.process_time()
    a, b = (judged(classifier, x, y, row.ball, found) for found in (ours, theirs))
    return {
        "attack": row.name, "ball": repr(row.ball), "settings": repr(row.ours),
        "ours": int(a.sum()), "published": int(b.sum()),
        "only ours breaks": int((b & ~a).sum()), "only published breaks": int((a & ~b).sum()),
        "seconds": [middle - start, end - middle],
    }  # fmt: skip


def markdown(run: dict[str, Any]) -> str:
    """The table of a run."""
    n = run["images"]
    head = ["attack", "ball", "robust, ours", "robust, published", "only ours breaks"]
    head += ["only published breaks", "CPU s, ours / published"]
    body = [
        [
            r["attack"], r["ball"], f"{r['ours'] / n:.1%}", f"{r['published'] / n:.1%}",
            str(r["only ours breaks"]), str(r["only published breaks"]),
            "{:.0f} / {:.0f}".format(*r["seconds"]),
        ]
        for r in run["records"]
    ]  # fmt: skip
    where = ", ".join(f"{k} {v}" for k, v in run["machine"].items())
    return (
        f"# Attacks against the published programs\n\n`{run['command']}`; {where}.\n\n"
        f"{n} images of CIFAR-10 (JPEG), classifier `{run['classifier']}` (clean accuracy "
        f"{run['clean'] / n:.1%}), {run['steps']} steps, one restart, seed {run['seed']}, "
        f"published program {run['published']}. Starts are random and differ.\n\n"
        + table(head, body)
    )


def revision(folder: Path) -> str:
    """The commit of a clone."""
    head = (folder / ".git" / "HEAD").read_text().strip()
    if head.startswith("ref: "):
        head = (folder / ".git" / head[5:]).read_text().strip()
    return f"fra31/auto-attack {head[:7]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--published", type=Path, required=True, help="clone of auto-attack")
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--classifier", required=True, help="ARCH:FILE, as for depure evaluate")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rays", type=Path, help="clone of uclaml/RayS")
    parser.add_argument("--advertorch", type=Path, help="clone of BorealisAI/advertorch")
    parser.add_argument("--queries", type=int, default=1000, help="of Square, RayS and SPSA")
    parser.add_argument(
        "--eps", type=lambda t: [float(Fraction(e)) for e in t.split(",")], default="1/510,0.1,1",
        help="of Linf, L2 and L1: budgets at which some images survive",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="rows whose name and ball contain this")
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks_vs_published.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.path.insert(0, str(args.published))
    images = image_folder(args.data, limit=args.images, seed=args.seed)
    classifier = load_classifier(args.classifier)
    with torch.no_grad():
        right = classifier(images.x).argmax(1) == images.y
    kept = images[right]
    noise = Noise.of(args.seed, kept.index)
    run: dict[str, Any] = {
        "command": "python " + shlex.join(["benchmarks/attacks_vs_published.py", *sys.argv[1:]]),
        "machine": machine(), "images": len(images), "clean": len(kept), "steps": args.steps,
        "seed": args.seed, "classifier": args.classifier,
        "published": revision(args.published),
        "records": [],
    }  # fmt: skip
    for row in rows(args):
        if args.only in f"{row.name} {row.ball}":
            run["records"].append(compare(row, classifier, kept.x, kept.y, noise))
            print(run["records"][-1], flush=True)
            # Written after every row: a long run that is stopped keeps what it has.
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(run, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(markdown(run))
    print(markdown(run))


if __name__ == "__main__":
    main()
