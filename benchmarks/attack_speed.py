"""End to end: PGD x EoT against a DDIM defence on the bundled digits, Depure's way and others'.

    python benchmarks/attack_speed.py                  # PGD 20 x EoT 10 x DDIM 20, 16 digits
    python benchmarks/attack_speed.py --iterations 2   # fewer PGD steps, the same ratios

One process, one thread, process CPU time; the ways take turns and the figure is the median
[least-greatest] over rounds of the ratio to ADDT's way. All ways take the same steps on the same
noise, so a faster but weaker attack would show in the loss of the results, which is measured on
fresh draws that none of them saw.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gradients import RESULTS, ReentrantNet, table
from measure import machine, timed
from torch import Tensor

from depure.attacks import PGD
from depure.data import digits
from depure.defences import Defended
from depure.diffusion import DDIM, Backprop, Checkpoint, Denoiser, Full
from depure.noise import Noise
from depure.purifiers import DiffPure
from depure.threat import Linf
from depure.zoo import load_classifier, load_denoiser

ADDT = "ADDT: EoT loop, reentrant checkpoint, weight gradients"
LOOP = "EoT loop, plain autograd (Lee & Kim)"
OURS = "depure: images x draws in one batch, default driver"


@dataclass(frozen=True)
class Setting:
    """The attack, the same for every way."""

    iterations: int
    eot: int
    ddim: int
    images: int
    t_star: float
    eps: float


def defence(setting: Setting, backprop: Backprop, trainable: bool = False) -> Defended:
    """DDIM purification before the bundled classifier; ADDT leaves the weights trainable."""
    denoiser = load_denoiser("digits")
    if trainable:
        network = ReentrantNet(denoiser.network.requires_grad_(True))
        denoiser = Denoiser(network, denoiser.schedule, denoiser.prediction, freeze=False)
    purifier = DiffPure(
        denoiser, DDIM(), t_star=setting.t_star, steps=setting.ddim, backprop=backprop
    )
    return Defended(purifier, load_classifier("digits"))


def looped(setting: Setting, model: Defended, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """PGD as published programs write it: one draw after the other, loss.backward()."""
    ball = Linf(setting.eps)
    x_adv = x
    for i in range(setting.iterations):
        rows = noise.fold("pgd", i).draws(setting.eot)
        grad = torch.zeros_like(x)
        for draw in range(setting.eot):
            leaf = x_adv.clone().requires_grad_()
            logits = model(leaf, rows[torch.arange(draw, len(rows), setting.eot)])
            F.cross_entropy(logits, y, reduction="sum").backward()
            assert leaf.grad is not None
            grad += leaf.grad
        model.zero_grad(set_to_none=True)
        x_adv = ball.project(x_adv + ball.default_step * grad.sign(), x)
    return x_adv


@torch.no_grad()
def judged(model: Defended, x: Tensor, y: Tensor, noise: Noise, draws: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on fresh draws."""
    rows = noise.fold("judge").draws(draws)
    logits = model(x.repeat_interleave(draws, 0), rows)
    labels = y.repeat_interleave(draws)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return F.cross_entropy(logits, labels).item(), accuracy.item()


def ways(setting: Setting, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Callable[[], Tensor]]:
    """Each gives the adversarial images."""
    addt = defence(setting, Full(), trainable=True)
    plain, ours = defence(setting, Full()), defence(setting, Checkpoint())
    attack, ball = PGD(steps=setting.iterations, eot=setting.eot), Linf(setting.eps)
    return {
        ADDT: lambda: looped(setting, addt, x, y, noise),
        LOOP: lambda: looped(setting, plain, x, y, noise),
        OURS: lambda: attack(ours, x, y, ball, noise),
    }


def measure(setting: Setting, rounds: int, judge_draws: int) -> dict[str, Any]:
    """Time the ways in turn and judge what they found."""
    images = digits("test").sample(setting.images)
    x, y, noise = images.x, images.y, Noise.of(seed=0, index=images.index)
    judge = defence(setting, Full())
    clean = judged(judge, x, y, noise, judge_draws)
    print(f"unattacked: loss {clean[0]:.4f}, accuracy {clean[1]:.3f}", flush=True)
    tasks = ways(setting, x, y, noise)
    found = {name: task() for name, task in tasks.items()}  # warm-up, and the results to judge
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds):
        for name, task in tasks.items():
            seconds[name].append(timed(task))
            print(f"  round {turn}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    records = []
    for name, spent in seconds.items():
        gains = [a / b for a, b in zip(seconds[ADDT], spent, strict=True)]
        loss, accuracy = judged(judge, found[name], y, noise, judge_draws)
        records.append({
            "way": name, "seconds": spent, "speedup": statistics.median(gains),
            "low": min(gains), "high": max(gains), "loss": loss, "accuracy": accuracy,
        })  # fmt: skip
    return {
        "command": "python " + shlex.join(["benchmarks/attack_speed.py", *sys.argv[1:]]),
        "setting": asdict(setting), "rounds": rounds, "machine": machine(),
        "unattacked": {"loss": clean[0], "accuracy": clean[1]}, "judge_draws": judge_draws,
        "records": records,
    }  # fmt: skip


def markdown(run: dict[str, Any]) -> str:
    """The table of one run."""
    where = ", ".join(f"{k} {v}" for k, v in run["machine"].items())
    what = ", ".join(f"{k} {v}" for k, v in run["setting"].items())
    clean = run["unattacked"]
    head = ["way", "CPU s, median", "times faster", f"loss on {run['judge_draws']} fresh draws"]
    rows = [
        [
            r["way"],
            f"{statistics.median(r['seconds']):.1f}",
            f"{r['speedup']:.2f} [{r['low']:.2f}-{r['high']:.2f}]",
            f"{r['loss']:.4f}",
            f"{r['accuracy']:.3f}",
        ]
        for r in run["records"]
    ]
    return (
        f"# PGD x EoT, end to end\n\n`{run['command']}`, {run['rounds']} rounds; {where}.\n"
        f"{what}. Unattacked: loss {clean['loss']:.4f}, accuracy {clean['accuracy']:.3f}.\n\n"
        + table([*head, "accuracy"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--eot", type=int, default=10)
    parser.add_argument("--ddim", type=int, default=20)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--t-star", type=float, default=0.1)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--judge-draws", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "attack_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(args.iterations, args.eot, args.ddim, args.images, args.t_star, args.eps)
    run = measure(setting, args.rounds, args.judge_draws)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(run, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(run))
    print(markdown(run))


if __name__ == "__main__":
    main()
