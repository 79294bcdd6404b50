"""Every attack against the bundled digits defences: attack x sampler x model, with intervals.

    python benchmarks/attacks_digits.py      # hours on 2 cores; continues if stopped

Every cell is a `depure evaluate` command, printed as it starts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from depure.evaluation.shards import read_shards
from depure.evaluation.statistics import difference

GRADIENT = "--attack-steps 20 --eot 5"
LONGER = "--attack-steps 50 --eot 5"  # with 20, APGD's schedule has windows of a single step
ATTACKS = {
    "PGD": f"--attack pgd {GRADIENT}",
    "PGD, 50 steps": f"--attack pgd {LONGER}",
    "PGD from transfer": f"--attack pgd --start transfer {GRADIENT}",
    "PGD from BPDA+EOT": f"--attack pgd --start bpda {GRADIENT}",
    "PGD from the score": f"--attack pgd --start score {GRADIENT}",
    "MI-PGD": f"--attack mi-pgd {GRADIENT}",
    "APGD-CE": f"--attack apgd-ce {LONGER}",
    "APGD-DLR": f"--attack apgd-dlr {LONGER}",
    "APGD-T(3)": f"--attack apgd-t --targets 3 {GRADIENT}",
    "FAB-T(3)": f"--attack fab --targets 3 {GRADIENT}",
    "DiffAttack": f"--attack diffattack {LONGER}",
    "DiffAttack, published": f"--attack diffattack-published {LONGER}",
    "full-intermediate": f"--attack full-intermediate {LONGER}",
    "full-intermediate, published": f"--attack full-intermediate-published {LONGER}",
    "DiffHammer": f"--attack diffhammer {GRADIENT}",
    "BPDA+EOT": f"--attack bpda {GRADIENT}",
    "transfer": "--attack transfer --attack-steps 100",
    "Square": "--attack square --attack-steps 200 --eot 2",
    "RayS": "--attack rays --attack-steps 300 --eot 3",
    "LF": f"--attack low-frequency {GRADIENT}",
    "ReColorAdv": f"--attack recolor {GRADIENT}",
    "StAdv, flow 0.05": f"--attack stadv {GRADIENT} --eps 0.05",
    "PPGD, features 0.5": f"--attack ppgd {GRADIENT} --eps 0.5",
    "LPA, features 0.5": f"--attack lpa {GRADIENT} --eps 0.5",
    "AutoAttack-rand": f"--attack autoattack-rand {LONGER}",
    "AutoAttack-fixed": f"--attack autoattack-fixed {LONGER}",
    "AutoAttack-stochastic": f"--attack autoattack-stochastic {GRADIENT} --queries 100",
    "strongest(1000)": "--attack strongest --calls 1000",
    "SPSA": "--attack spsa --attack-steps 10",  # the dearest of all, so the last
}
GENERALISES = (  # the first contains the second: its robust accuracy should not be higher
    ("MI-PGD", "PGD"),
    ("APGD-CE", "PGD, 50 steps"),
    ("DiffAttack", "APGD-CE"),
    ("DiffAttack, published", "APGD-CE"),
    ("full-intermediate", "APGD-CE"),
    ("full-intermediate, published", "APGD-CE"),
    ("AutoAttack-rand", "APGD-CE"),
    ("AutoAttack-rand", "APGD-DLR"),
    ("AutoAttack-stochastic", "APGD-T(3)"),
    ("AutoAttack-stochastic", "FAB-T(3)"),
    ("strongest(1000)", "PGD"),
    ("strongest(1000)", "transfer"),
)
SAMPLERS = {"DDPM": "--sampler ddpm", "DDIM": "--sampler ddim", "VP-SDE": "--sampler sde"}
MODELS = {"vanilla": "digits", "ADDT": "digits-addt"}
Cell = tuple[str, str, str]  # attack, sampler, model


def main() -> None:
    args = parse_arguments()
    cells = [(a, s, m) for s in args.samplers for m in args.models for a in args.attacks]
    if not args.finished:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda cell: run(cell, args), cells))
    text = page(args)
    if args.results is not None:
        args.results.write_text(text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    def names(known: dict[str, str]) -> dict[str, Any]:
        return {"nargs": "+", "choices": list(known), "default": list(known), "metavar": "NAME"}

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--attacks", **names(ATTACKS))
    parser.add_argument("--samplers", **names(SAMPLERS))
    parser.add_argument("--models", **names(MODELS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of the purifier")
    parser.add_argument("--eps", default="0.2", help="L-inf, where a cell names no other threat")
    parser.add_argument("--finished", action="store_true", help="start nothing: tabulate what is")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=None, help="also write the page here")
    parser.add_argument("--out", type=Path, default=Path("runs/attacks_digits"))
    return parser.parse_args()


def folder(cell: Cell, args: argparse.Namespace) -> Path:
    plain = "".join(c if c.isalnum() else "-" for c in "-".join(cell).lower())
    return args.out / plain


def run(cell: Cell, args: argparse.Namespace) -> None:
    attack, sampler, model = cell
    out = folder(cell, args)
    if (out / "card.json").exists():
        return
    threat = "" if "--eps" in ATTACKS[attack] else f"--eps {args.eps}"
    line = (
        f"evaluate --denoiser {MODELS[model]} {SAMPLERS[sampler]} --steps {args.steps} {threat} "
        f"--images {args.images} {ATTACKS[attack]} --check-images 0 --out {out}"
    )
    print("depure", line, flush=True)
    command = [sys.executable, "-m", "depure", *shlex.split(line)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def page(args: argparse.Namespace) -> str:
    command = shlex.join(["python", "benchmarks/attacks_digits.py", *sys.argv[1:]])
    found = {
        (a, s, m): json.loads(path.read_text())
        for a in ATTACKS
        for s in SAMPLERS
        for m in MODELS
        if (path := folder((a, s, m), args) / "card.json").exists()
    }
    clean = "; ".join(
        f"{s} {m} {100 * min(values):.1f} to {100 * max(values):.1f}"
        for s in SAMPLERS
        for m in MODELS
        if (values := [value(c, "clean")[0] for k, c in found.items() if k[1:] == (s, m)])
    )
    return "\n".join([
        f"# Attacks on the bundled digits\n\n`{command}`\n",
        f"{args.images} test images, Linf eps {args.eps} unless the row names another threat, "
        f"t* = 0.1, {args.steps} purifier steps, judged on 20 fresh draws, seed 0. Robust accuracy "
        f"in %, 95 % intervals over images. Without attack: {clean}.\n",
        "Calls: images through the defence per image attacked, judging (40 calls) included; those "
        "with a gradient cost about three times as much. transfer asks the bare classifier.\n",
        *table(found),
        "\n## Is an attack as strong as what it contains?\n",
        "Robust accuracy of the first minus that of the second, paired on the same images: above "
        "0 the larger attack is the weaker one. The larger one has more calls.\n",
        *contained(args),
    ]) + "\n"  # fmt: skip


def value(card: dict[str, Any], side: str) -> tuple[float, float, float]:
    found = card["results"][side]["accuracy"]
    return found["value"], found["low"], found["high"]


def table(found: dict[Cell, dict[str, Any]]) -> list[str]:
    columns = [(s, m) for s in SAMPLERS for m in MODELS if any(k[1:] == (s, m) for k in found)]
    lines = [
        "| attack | calls | " + " | ".join(f"{s}, {m}" for s, m in columns) + " |",
        "| --- " * (2 + len(columns)) + "|",
    ]
    for attack in ATTACKS:
        cards = [found.get((attack, *column)) for column in columns]
        if not any(cards):
            lines.append(f"| {attack} | | " + " | ".join("not run" for _ in columns) + " |")
            continue
        calls = [c["cost"]["classifier_calls"] / c["results"]["images"] for c in cards if c]
        low, high = round(min(calls)), round(max(calls))
        cells = [_cell(card) for card in cards]
        calls_cell = f"{low}" if low == high else f"{low}-{high}"
        lines.append(f"| {attack} | {calls_cell} | " + " | ".join(cells) + " |")
    return lines


def _cell(card: dict[str, Any] | None) -> str:
    if card is None:
        return "not run"
    middle, low, high = value(card, "robust")
    return f"{100 * middle:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def contained(args: argparse.Namespace) -> list[str]:
    lines = ["| larger | contained | sampler | model | difference, points |", "| --- " * 5 + "|"]
    for larger, smaller in GENERALISES:
        for sampler in SAMPLERS:
            for model in MODELS:
                pair = [right((a, sampler, model), args) for a in (larger, smaller)]
                if pair[0] is None or pair[1] is None:
                    continue
                d = difference(pair[0], pair[1])
                text = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
                lines.append(f"| {larger} | {smaller} | {sampler} | {model} | {text} |")
    return lines


def right(cell: Cell, args: argparse.Namespace) -> np.ndarray | None:
    """Correctness (images, draws) of the attacked images."""
    run = folder(cell, args)
    if not (run / "card.json").exists():
        return None
    shard = read_shards(run)
    return (shard.adversarial == shard.y[:, None]).numpy()


if __name__ == "__main__":
    main()
