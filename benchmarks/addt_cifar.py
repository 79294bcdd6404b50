"""Does ADDT help on CIFAR-10 at the size that a CPU allows? Train, attack, tabulate.

    python benchmarks/addt_cifar.py --train FOLDER --test FOLDER --classifier resnet56:FILE

FOLDERs hold CLASS/image files (or CIFAR as it is published). Hours on 2 cores; every step is a
`depure` command, printed as it starts, and a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from attacks_digits import value

from depure.evaluation.shards import read_shards
from depure.evaluation.statistics import difference

MODELS = {"vanilla": "base", "control": "control", "ADDT": "addt"}
ATTACKERS = {
    "DW-both": "--knows forward,reverse --attack-steps 20",
    "white-box EoT": "--attack-steps 20 --eot 5",
}
SHORT = {"DW-both": "dw", "white-box EoT": "eot"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--classifier", required=True, help="guide and attacked classifier")
    parser.add_argument("--updates", type=int, default=200, help="of ADDT and its control")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--finished", action="store_true", help="start nothing: tabulate what is")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar"))
    parser.add_argument("--results", type=Path, default=None, help="also write the table here")
    args = parser.parse_args()
    if not args.finished:
        train(args)
        for attacker in ATTACKERS:
            for model in MODELS:
                evaluate(model, attacker, args)
    text = page(args)
    if args.results is not None:
        args.results.write_text(text)
    print(text)


def train(args: argparse.Namespace) -> None:
    """The base, then from it the control and ADDT, with the same settings and seed."""
    depure(f"train diffusion --preset cifar10-small --data {args.train}", args.out / "base")
    for name, perturbation in (("control", "none"), ("addt", "rbgm")):
        depure(
            f"train addt --preset cifar10-small --perturbation {perturbation} --denoiser "
            f"{args.out}/base --data {args.train} --classifier {args.classifier} --seed 0 "
            f"--updates {args.updates}",
            args.out / name,
        )


def evaluate(model: str, attacker: str, args: argparse.Namespace) -> None:
    depure(
        f"evaluate --data {args.test} --classifier {args.classifier} --denoiser "
        f"{args.out}/{MODELS[model]} --sampler ddpm --steps 5 --t-star 0.1 --eps {args.eps} "
        f"--images {args.images} --check-images 0 --shard-size 16 {ATTACKERS[attacker]}",
        folder(model, attacker, args),
    )


def folder(model: str, attacker: str, args: argparse.Namespace) -> Path:
    return args.out / f"{model.lower()}-{SHORT[attacker]}"


def depure(line: str, out: Path) -> None:
    if any((out / name).exists() for name in ("card.json", "MODEL_CARD.md", "scheduler")):
        return
    print("depure", line, "--out", out, flush=True)
    command = [sys.executable, "-m", "depure", *shlex.split(line), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def page(args: argparse.Namespace) -> str:
    lines = [
        f"# ADDT on CIFAR-10, small\n\n`{shlex.join(['python', *sys.argv])}`\n",
        f"{args.images} test images, Linf eps {args.eps}, DDPM, t* = 0.1, 5 purifier steps, PGD-20 "
        f"(EoT 5 where noise is hidden, judged on 20 fresh draws; 1 where it is known), one "
        f"training seed, {args.updates} updates of batch 32, lambda of the paper. Accuracy in %, "
        f"95 % intervals over images; the difference to the control is paired.\n",
        "| attacker | model | no attack | under attack | minus control |",
        "| --- | --- | --- | --- | --- |",
    ]
    for attacker in ATTACKERS:
        for model in MODELS:
            path = folder(model, attacker, args) / "card.json"
            if not path.exists():
                lines.append(f"| {attacker} | {model} | not run | not run | |")
                continue
            card = json.loads(path.read_text())
            shown = " | ".join(
                "{:.1f} ({:.0f}-{:.0f})".format(*(100 * v for v in value(card, side)))
                for side in ("clean", "robust")
            )
            lines.append(f"| {attacker} | {model} | {shown} | {gain(model, attacker, args)} |")
    return "\n".join(lines) + "\n"


def gain(model: str, attacker: str, args: argparse.Namespace) -> str:
    paths = [folder(m, attacker, args) for m in (model, "control")]
    if model != "ADDT" or not all((p / "card.json").exists() for p in paths):
        return ""
    found = []
    for path in paths:
        shard = read_shards(path)
        found.append((shard.adversarial == shard.y[:, None]).numpy())
    d = difference(*found)
    return f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


if __name__ == "__main__":
    main()
