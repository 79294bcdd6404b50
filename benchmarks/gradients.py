"""What one gradient through a purifier costs, for Depure's drivers and the ways others do it.

    python benchmarks/gradients.py                      # both sizes, about an hour on one core
    python benchmarks/gradients.py --size s8 --steps 10,25 --rounds 3

One process, one thread. Time is process CPU time, methods take turns within a round, and each
figure is the median [least-greatest] over rounds of the ratio to that round's F, one forward
pass of purifier and classifier without gradients. Live bytes and FLOPs do not move from run to
run. Errors are against plain autograd in float64, on the first two images.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler talks

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from measure import alternate, count_flops, gradient_error, live_peak, machine, timed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from depure.defences import Defended
from depure.diffusion import (
    DDPM,
    VPSDE,
    Adjoint,
    Backprop,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Sampler,
    Schedule,
    VPDiscrete,
)
from depure.diffusion.backprop.adjoint import _Brownian, _checked, _Flat
from depure.diffusion.backprop.checkpoint import step_bytes
from depure.diffusion.chain import Chain
from depure.noise import Noise
from depure.purifiers import DiffPure
from depure.zoo import SmallCNN, load_denoiser

RESULTS = Path(__file__).parent / "results"
REFERENCE, PLAIN = "F: forward, no gradient", "plain autograd"
T_STAR = 0.1


# Problems -----------------------------------------------------------------------------------


def network_of(size: str) -> nn.Module:
    """The network of a size; random weights, every affine parameter and zero output stirred."""
    if size == "digits":  # the bundled, trained model: for the error of approximate gradients
        return load_denoiser("digits").network
    torch.manual_seed(0)
    if size == "s8":
        net = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64),
            layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    else:
        net = UNet2DModel(
            sample_size=32, in_channels=3, out_channels=3, block_out_channels=(32, 64, 64),
            layers_per_block=1, norm_num_groups=8, attention_head_dim=32,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    return stir(net)


def stir(network: nn.Module) -> nn.Module:
    """Make constant parameters random: ones and zeros hide a gradient that forgets them."""
    with torch.no_grad():
        for p in network.parameters():
            if p.numel() > 1 and p.min() == p.max():
                p.add_(0.2 * torch.randn_like(p))
    return network.eval().requires_grad_(False)


SHAPES = {"s8": (16, 1, 8, 8), "digits": (16, 1, 8, 8), "m32": (4, 3, 32, 32)}
SAMPLERS: dict[str, tuple[Sampler, Schedule]] = {
    "ddpm": (DDPM(), VPDiscrete.linear()),
    "vpsde": (EulerMaruyama(), VPSDE()),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One problem: a network, a chain of `steps` steps, images, labels and noise."""

    network: nn.Module
    classifier: nn.Module
    sampler: str
    steps: int
    x: Tensor
    y: Tensor
    noise: Noise

    def double(self, rows: int) -> Case:
        """The same in float64 for the first rows."""
        return replace(
            self,
            network=copy.deepcopy(self.network).double(),
            classifier=copy.deepcopy(self.classifier).double(),
            x=self.x[:rows].double(),
            y=self.y[:rows],
            noise=self.noise[:rows],
        )

    @cached_property
    def frozen(self) -> Denoiser:
        """One denoiser for all drivers, as its links are measured once."""
        return Denoiser(self.network, SAMPLERS[self.sampler][1])

    def model(self, backprop: Backprop, network: nn.Module | None = None) -> Defended:
        """Purifier and classifier; with `network` given, its weights stay trainable."""
        sampler, schedule = SAMPLERS[self.sampler]
        denoiser = self.frozen if network is None else Denoiser(network, schedule, freeze=False)
        purifier = DiffPure(denoiser, sampler, t_star=T_STAR, steps=self.steps, backprop=backprop)
        return Defended(purifier, self.classifier)

    def trainable(self) -> nn.Module:
        """A copy of the network whose weights require gradients."""
        return copy.deepcopy(self.network).requires_grad_(True)

    def keeping(self, share: float) -> Checkpoint:
        """The driver whose budget holds the graphs of this share of the steps."""
        sampler, _ = SAMPLERS[self.sampler]
        purifier = DiffPure(self.frozen, sampler, t_star=T_STAR, steps=self.steps)
        size = step_bytes(purifier.prepared(self.x, self.noise))
        return Checkpoint(int(size * (share * self.steps + (share > 0))))


def case_of(size: str, sampler: str, steps: int, device: str) -> Case:
    """A problem with seeded images."""
    shape = SHAPES[size]
    torch.manual_seed(1)
    classifier = SmallCNN(shape[1], 10, 16).eval().requires_grad_(False)
    noise = Noise.of(seed=0, index=range(shape[0]))
    x = noise.uniform("images", 0, torch.empty(shape))
    y = torch.arange(shape[0]) % 10
    return Case(
        network_of(size).to(device), classifier.to(device), sampler, steps,
        x.to(device), y.to(device), noise,
    )  # fmt: skip


# Methods: each makes, for a case, a function that returns one gradient -------------------------

Gradient = Callable[[], Tensor]


def image_gradient(case: Case, model: Defended) -> Gradient:
    """torch.autograd.grad of the loss with respect to the images alone."""

    def run() -> Tensor:
        leaf = case.x.clone().requires_grad_()
        loss = F.cross_entropy(model(leaf, case.noise), case.y, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    return run


def with_weights(case: Case, model: Defended) -> Gradient:
    """loss.backward() through a network whose weights require gradients too."""

    def run() -> Tensor:
        leaf = case.x.clone().requires_grad_()
        F.cross_entropy(model(leaf, case.noise), case.y, reduction="sum").backward()
        for p in model.parameters():
            p.grad = None
        assert leaf.grad is not None
        return leaf.grad

    return run


@dataclass(frozen=True)
class TorchCheckpoint(Backprop):
    """torch.utils.checkpoint around every step, non-reentrant, otherwise as it comes."""

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        state = chain.start
        for link in chain.links:
            state = checkpoint(link, state, (), use_reentrant=False)
        return chain.end(state)


class ReentrantNet(nn.Module):
    """Reentrant checkpoint around each network call, as in ADDT's program."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = checkpoint(lambda a, b: self.network(a, b).sample, x, t, use_reentrant=True)
        return out


@dataclass(frozen=True)
class DiffPureAdjoint(Adjoint):
    """The adjoint with every weight in its state, as in DiffPure's program; our noise and grid."""

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        import torchsde

        with torch.no_grad():  # skips the check that weights are frozen
            sde = _checked(chain)
        start = sde.begin(0, chain.start[0])
        end = torchsde.sdeint_adjoint(
            _Flat(sde, start.shape), start.flatten(1),
            torch.tensor([0.0, sde.steps], dtype=torch.float64),
            bm=_Brownian(sde, 0, start.detach()), method="euler",
            adjoint_method=self.method, dt=1.0,
            adjoint_params=tuple(p for part in chain.parts for p in part.parameters()),
        )[-1].view_as(start)  # fmt: skip
        return chain.end((sde.finish(end),))


def forward_only(case: Case) -> Gradient:
    model = case.model(Full())

    @torch.no_grad()
    def run() -> Tensor:
        return model(case.x, case.noise)

    return run


METHODS: dict[str, Callable[[Case], Gradient]] = {
    REFERENCE: forward_only,
    PLAIN: lambda c: image_gradient(c, c.model(Full())),
    "plain autograd, weight gradients too": lambda c: with_weights(
        c, c.model(Full(), c.trainable())
    ),
    "torch checkpoint per step": lambda c: image_gradient(c, c.model(TorchCheckpoint())),
    "ADDT: reentrant, weight gradients too": lambda c: with_weights(
        c, c.model(Full(), ReentrantNet(c.trainable()))
    ),
    "torchsde adjoint as DiffPure runs it": lambda c: with_weights(
        c, c.model(DiffPureAdjoint(), c.trainable())
    ),
    "depure Adjoint()": lambda c: image_gradient(c, c.model(Adjoint())),
    "depure Checkpoint, keeping nothing": lambda c: image_gradient(c, c.model(Checkpoint(0))),
    "depure Checkpoint, keeping half": lambda c: image_gradient(c, c.model(c.keeping(0.5))),
    "depure Checkpoint, keeping all": lambda c: image_gradient(c, c.model(c.keeping(1.0))),
    "depure Checkpoint(), the default": lambda c: image_gradient(c, c.model(Checkpoint())),
}
SHORT = ("adjoint", "Adjoint", "keeping nothing", "default", PLAIN, REFERENCE)


def methods_for(sampler: str) -> list[str]:
    """All but the adjoints for DDPM; the adjoints and their rivals for the SDE."""
    if sampler == "vpsde":
        return [n for n in METHODS if any(s in n for s in SHORT) and "too" not in n]
    return [n for n in METHODS if "djoint" not in n]


# Measuring ------------------------------------------------------------------------------------


def measure_case(case: Case, rounds: int, device: str) -> list[dict[str, Any]]:
    """One record per method."""
    names = methods_for(case.sampler)
    tasks = {name: METHODS[name](case) for name in names}
    for task in tasks.values():
        task()  # warm-up: probes and caches
    flops = {name: count_flops(task) for name, task in tasks.items()}
    live = {name: live_peak(task, device) for name, task in tasks.items()}
    ratios = alternate(tasks, REFERENCE, rounds, device)
    double = case.double(2)
    exact = METHODS[PLAIN](double)()
    records = []
    for name in names:
        record: dict[str, Any] = {
            "sampler": case.sampler, "steps": case.steps, "method": name,
            "time": asdict(ratios[name]), "live_bytes": live[name],
            "live_to_plain": live[name] / live[PLAIN], "flops": flops[name] / flops[REFERENCE],
        }  # fmt: skip
        if name != REFERENCE:
            record["error"], record["signs"] = gradient_error(METHODS[name](double)(), exact)
        records.append(record)
        costs = f"{live[name] / 2**20:8.1f} MiB  {record['flops']:.3f} F"
        print(f"  {name:40s} {ratios[name]}  {costs}  {record.get('error', 0.0):.1e}", flush=True)
    return records


def noise_share(case: Case, device: str) -> float:
    """CPU time of one step's keyed normal numbers as a share of one denoiser call."""
    labels = torch.zeros(len(case.x), dtype=torch.int64, device=device)

    def noise() -> None:
        for i in range(10):
            case.noise.normal("reverse", i, case.x)

    @torch.no_grad()
    def network() -> None:
        for _ in range(10):
            case.network(case.x, labels)

    return statistics.median(timed(noise, device) / timed(network, device) for _ in range(9))


def measure_size(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """All samplers and step counts of one size."""
    share = noise_share(case_of(size, "ddpm", 1, args.device), args.device)
    print(f"{size}: keyed noise costs {100 * share:.1f} % of a denoiser call")
    records: list[dict[str, Any]] = []
    for sampler in ("vpsde",) if size == "digits" else SAMPLERS:
        for steps in args.steps:
            print(f"{size} {sampler} {steps} steps", flush=True)
            case = case_of(size, sampler, steps, args.device)
            records += measure_case(case, args.rounds, args.device)
    command = "python " + shlex.join(["benchmarks/gradients.py", *sys.argv[1:]])
    return {
        "command": command, "rounds": args.rounds, "batch": SHAPES[size],
        "weights": sum(p.numel() for p in network_of(size).parameters()),
        "machine": machine(args.device), "noise_share": share, "records": records,
    }  # fmt: skip


# Report ---------------------------------------------------------------------------------------


def markdown(runs: dict[str, Any]) -> str:
    """The tables of all runs in a results file."""
    parts = ["# What one gradient costs\n", __doc__.split("\n\n", 2)[2].strip() + "\n"]
    for size, run in runs.items():
        where = ", ".join(f"{k} {v}" for k, v in run["machine"].items())
        parts += [
            f"## {size}: batch {tuple(run['batch'])}, {run['weights']:,} weights\n",
            f"`{run['command']}`, {run['rounds']} rounds; {where}. "
            f"Keyed noise: {100 * run['noise_share']:.1f} % of a denoiser call.\n",
        ]
        for sampler in SAMPLERS:
            records = [r for r in run["records"] if r["sampler"] == sampler]
            if records:
                parts += [f"### {size}, {sampler}\n", *tables(records)]
    return "\n".join(parts)


def tables(records: list[dict[str, Any]]) -> list[str]:
    """Time by steps with the costs of the longest chain; then errors by steps."""
    steps = sorted({r["steps"] for r in records})
    top = steps[-1]
    head = [f"time/F, T={t}" for t in steps]
    head += [f"live MiB, T={top}", "/ plain", "FLOPs/F", "error, fp64", "equal signs"]
    rows, errors = [], []
    for name in dict.fromkeys(r["method"] for r in records):
        by = {r["steps"]: r for r in records if r["method"] == name}
        last = by[top]
        cells = ["{median:.2f} [{low:.2f}-{high:.2f}]".format(**by[t]["time"]) for t in steps]
        cells += [f"{last['live_bytes'] / 2**20:.1f}", f"{last['live_to_plain']:.3f}"]
        cells += [f"{last['flops']:.3f}"]
        known = "error" in last
        cells += [f"{last['error']:.1e}", f"{last['signs']:.3f}"] if known else ["", ""]
        rows.append([name, *cells])
        if known and last["error"] > 1e-10:
            errors.append([name, *(f"{by[t]['error']:.2e} / {by[t]['signs']:.3f}" for t in steps)])
    out = [table(["method", *head], rows)]
    if errors:
        out.append(table(["error / equal signs", *(f"T={t}" for t in steps)], errors))
    return out


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=["s8", "m32", "digits", "all"], default="all")
    parser.add_argument("--steps", default="10,25,50,100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "gradients.json")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "gradients.md")
    args = parser.parse_args()
    args.steps = [int(s) for s in args.steps.split(",")]
    torch.set_num_threads(1)
    runs = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for size in ("s8", "m32") if args.size == "all" else (args.size,):
        runs[size] = measure_size(args, size)  # other sizes in the file stay
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(runs, indent=1) + "\n")
        args.markdown.write_text(markdown(runs))
    print(f"\nwrote {args.out} and {args.markdown}")


if __name__ == "__main__":
    main()
