"""Our attacks against the published programs: the same images, classifier and budgets.

    git clone https://github.com/fra31/auto-attack /tmp/auto-attack
    python benchmarks/attacks_vs_published.py --published /tmp/auto-attack \\
        --data /tmp/cifar/test --weights resnet56-cifar10.safetensors --images 100

The model is deterministic: an undefended CIFAR ResNet. Images it gets wrong count as wrong for
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
from pathlib import Path
from typing import Any

import torch
from gradients import RESULTS, table
from measure import machine
from torch import Tensor, nn

from depure.attacks import APGD
from depure.attacks.base import Attack
from depure.data import image_folder
from depure.noise import Noise
from depure.purify import Defended
from depure.purify.base import Identity
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


def rows(steps: int, seed: int, targets: int) -> list[Row]:
    """Every comparison; budgets at which some images survive."""
    return [
        *apgd(Linf(0.5 / 255), steps, seed, targets),
        *apgd(L2(0.1), steps, seed, targets),
        *apgd(L1(1.0), steps, seed, targets),
        *apgd(L1(1.0), steps, seed, targets, shrinking=True)[:1],
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
        f"{n} images of CIFAR-10 (JPEG), undefended {run['classifier']} (clean accuracy "
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
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-56 safetensors")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose name and ball contain this")
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks_vs_published.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.path.insert(0, str(args.published))
    images = image_folder(args.data, limit=args.images, seed=args.seed)
    classifier = load_classifier(f"resnet56:{args.weights}")
    with torch.no_grad():
        right = classifier(images.x).argmax(1) == images.y
    kept = images[right]
    noise = Noise.of(args.seed, kept.index)
    run: dict[str, Any] = {
        "command": "python " + shlex.join(["benchmarks/attacks_vs_published.py", *sys.argv[1:]]),
        "machine": machine(), "images": len(images), "clean": len(kept), "steps": args.steps,
        "seed": args.seed, "classifier": "ResNet-56", "published": revision(args.published),
        "records": [],
    }  # fmt: skip
    for row in rows(args.steps, args.seed, args.targets):
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
