"""What one ADDT update costs: against its bare network passes, and against the official recipe.

    python benchmarks/addt_cost.py                     # digits and a 32x32 network
    python benchmarks/addt_cost.py --rounds 3 --device cuda

An update is five CGPO iterations (network and classifier forward, backward to the noise) and one
training pass (forward, backward to the weights); the optimiser's step is in all ways alike. The
official recipe computes the weights' gradients in every iteration and throws them away. One
process, one thread, process CPU time; the ways take turns, figures are medians [least-greatest]
of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from gradients import RESULTS
from measure import Ratio, alternate, count_flops, machine
from torch import Tensor, nn
from torch.nn import functional

from depure.diffusion import VPDiscrete
from depure.noise import Noise
from depure.training import ADDT, DiscreteProcess, adversarial_noise, rank_map
from depure.zoo import CifarResNet, load_classifier, load_denoiser
from depure.zoo.build import new_unet

BARE = "bare passes: 5 x (networks forward, backward to the noise) + 1 training pass"
OURS = "Depure's update"
OFFICIAL = "official recipe: weight gradients in every iteration"
Task = Callable[[], object]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Ratio]] = {}
    flops: dict[str, dict[str, float]] = {}
    for name, make in SETTINGS.items():
        tasks = ways(*make(), device=args.device)
        for task in tasks.values():
            task()  # warm up
        rows[name] = alternate(tasks, BARE, args.rounds, args.device)
        counts = {way: count_flops(task) for way, task in tasks.items()}
        flops[name] = {way: count / counts[BARE] for way, count in counts.items()}
        print(name, {way: str(ratio) for way, ratio in rows[name].items()}, flush=True)
    write(args, rows, flops)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def digits_models() -> tuple[nn.Module, nn.Module, int, int]:
    return load_denoiser("digits").network, load_classifier("digits"), 64, 8


def small_models() -> tuple[nn.Module, nn.Module, int, int]:
    return new_unet(32, 3, (32, 64, 64)), CifarResNet(20, 10), 16, 32


SETTINGS = {
    "bundled digits, batch 64": digits_models,
    "32x32, UNet of 1.1 M weights, ResNet-20, batch 16": small_models,
}


def ways(
    network: nn.Module, classifier: nn.Module, batch: int, size: int, device: str
) -> dict[str, Task]:
    """One update in each way, without the optimiser's step."""
    network.train().requires_grad_(True).to(device)
    classifier.eval().requires_grad_(False).to(device)
    channels = 1 if size == 8 else 3
    process = DiscreteProcess(VPDiscrete.linear())
    objective = ADDT(process, classifier)
    x0 = 2 * torch.rand(batch, channels, size, size, device=device) - 1
    y = torch.arange(batch, device=device) % 10
    t = torch.randint(0, 1000, (batch,), device=device)
    noise, eps = Noise.of(0, range(batch)), torch.randn_like(x0)
    share = objective.share(t, x0)

    def guiding(mixed: Tensor) -> Tensor:
        estimate = process.denoised(network, process.diffuse(x0, t, mixed), t)
        return functional.cross_entropy(classifier(estimate.x0 / 2 + 0.5), y)

    def clear() -> None:
        for p in network.parameters():
            p.grad = None

    def bare() -> None:
        clear()
        network.requires_grad_(False)
        for _ in range(5):
            leaf = eps.clone().requires_grad_()
            torch.autograd.grad(guiding(leaf), leaf)
        network.requires_grad_(True)
        torch.autograd.backward(process.loss(network, x0, t, eps).mean())

    def ours() -> None:
        clear()
        loss = objective.loss(network, x0, y, t, noise)
        torch.autograd.backward(loss)

    def official() -> None:
        clear()
        e_d, total = torch.randn_like(x0), torch.zeros_like(x0)
        for _ in range(5):
            leaf = e_d.clone().requires_grad_()
            guiding(adversarial_noise(torch.randn_like(x0), leaf, share)).backward()
            total = total + leaf.grad
            e_d = rank_map(total, torch.randn_like(x0), "channel")
        clear()
        mixed = adversarial_noise(torch.randn_like(x0), e_d, share)
        torch.autograd.backward(process.loss(network, x0, t, mixed).mean())

    return {BARE: bare, OURS: ours, OFFICIAL: official}


def write(
    args: argparse.Namespace,
    rows: dict[str, dict[str, Ratio]],
    flops: dict[str, dict[str, float]],
) -> None:
    command, place = shlex.join(["python", "benchmarks/addt_cost.py", *sys.argv[1:]]), machine()
    lines = [
        f"# What an ADDT update costs\n\n`{command}`; "
        f"{', '.join(f'{k} {v}' for k, v in place.items())}; {args.rounds} rounds. Ratios to the "
        f"bare passes: median [least-greatest] time, and floating-point operations.\n\n"
        "| networks | way | time | FLOPs |\n| --- | --- | --- | --- |"
    ]
    for name, ratios in rows.items():
        lines += [f"| {name} | {w} | {r} | {flops[name][w]:.2f} |" for w, r in ratios.items()]
    (args.out / "addt_cost.md").write_text("\n".join(lines) + "\n")
    data = {"command": command, "machine": place, "rounds": args.rounds, "flops": flops,
            "time": {n: {w: asdict(r) for w, r in v.items()} for n, v in rows.items()}}  # fmt: skip
    (args.out / "addt_cost.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
