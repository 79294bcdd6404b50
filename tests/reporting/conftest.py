"""Run folders made up in milliseconds: random tables, cards through `card_of`, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depure.evaluation.card import card_of, keep_card
from depure.evaluation.checks import Check
from depure.evaluation.cost import Cost
from depure.evaluation.fitting import Fitting
from depure.evaluation.gradient_check import Agreement, GradientCheck
from depure.evaluation.shards import Shard, shard_name
from depure.pieces import Pieces, identity
from depure.rows import Chunk

MakeRun = Callable[..., Path]

PURIFIER = {
    "name": "DiffPure",
    "networks": ["UNet(651,041 weights, epsilon, VPDiscrete(T=1000, betas=0.0001..0.02))"],
    "sampler": {"name": "DDPM", "variance": "small", "clip_x0": False},
    "t_star": 0.1,
    "steps": 10,
    "rounds": 1,
    "convention": "diffpure",
    "clamp": False,
    "backprop": {"name": "Checkpoint"},
}


def description(
    images: int,
    shape: tuple[int, int, int],
    draws: int,
    *,
    knows: tuple[str, ...] = (),
    stages: tuple[str, ...] = ("forward", "reverse"),
    steps: int = 10,
    classes: tuple[str, ...] = ("cat", "dog", "emu"),
    fingerprint: str = "feedbeef00000001",
) -> dict[str, Any]:
    return {
        "data": {
            "name": "made-up",
            "images": images,
            "shape": list(shape),
            "classes": list(classes),
            "fingerprint": fingerprint,
        },
        "model": {
            "purifier": PURIFIER if stages else {"name": "Identity"},
            "classifier": "SmallCNN(65,834 weights)",
            "stages": list(stages),
            "weights": "83fd0609f64d892d",
            "dtype": "float32",
        },
        "threat": {"ball": {"name": "Linf", "eps": 8 / 255}, "knows": list(knows)},
        "attack": {
            "name": "PGD",
            "steps": steps,
            "step_size": None,
            "eot": 5,
            "average": "gradients",
            "loss": "ce",
            "random_start": False,
            "target": None,
        },
        "draws": 20,
        "seed": 7,
        "shard_size": 4,
    }


def votes(y: Tensor, draws: int, accuracy: float, generator: torch.Generator) -> Tensor:
    right = torch.rand(len(y), draws, generator=generator) < accuracy
    return torch.where(right, y[:, None], (y[:, None] + 1) % 3).to(torch.int16)


def named(attack: str) -> dict[str, str]:
    return {"name": attack} | ({"loss": "ce"} if attack == "APGD" else {})


def gradient_check(*, exact: bool = True) -> GradientCheck:
    rows = (
        Agreement("Checkpoint(), float64", 0.0 if exact else 0.93, 0.7, 0.69, exact),
        Agreement("Checkpoint(), float32", 2.934963596044944e-07, 0.9999999999999856, 1.0, exact),
    )
    verdict = "PASSED: the gradient is that of the defence (finite differences: 9.4e-11)"
    if not exact:
        verdict = "FAILED: the gradient is not that of the defence"
    return GradientCheck(exact, verdict, 2, 9.4e-11, "plain autograd in float64", rows)


CHECKS = [
    Check("gradient", "pass", "PASSED: the gradient is that of the defence"),
    Check("fresh draws", "warn", "accuracy 4.2 % on the attack's draws, 64.0 % on fresh ones"),
    Check("ball", "fail", "3 images leave the ball; size 0.4000"),
]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        name: str = "run",
        *,
        images: int = 10,
        shape: tuple[int, int, int] = (1, 8, 8),
        draws: int = 7,
        iterations: int = 6,
        title: str = "A made-up run",
        command: str = "depure evaluate --out run",
        robust: float = 0.4,
        exact: bool = True,
        checks: list[Check] = CHECKS,
        seed: int = 0,
        data_seed: int = 0,
        shards: bool = True,
        examples: bool = True,
        members: tuple[str, ...] = (),
        **setting: Any,
    ) -> Path:
        data = torch.Generator().manual_seed(data_seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(images, *shape, generator=data)
        y = torch.randint(3, (images,), generator=data)
        x_adv = (x + 8 / 255 * torch.randn(x.shape, generator=generator).sign()).clamp(0, 1)
        loss = torch.linspace(0.1, 3.0, iterations).repeat(images, 1)
        budget = torch.empty(images, 0), torch.empty(images, 0, dtype=torch.float64)
        if members:
            count = len(members) + 1
            budget = (
                torch.linspace(0.95, robust, count).repeat(images, 1),
                torch.linspace(10.0, 500.0, count, dtype=torch.float64).repeat(images, 1),
            )
        shard = Shard(
            torch.arange(images), y, x, x_adv,
            votes(y, draws, 0.95, generator), votes(y, draws, robust, generator),
            loss, 1 - loss / 4, torch.ones(images, iterations, dtype=torch.bool),
            torch.zeros(images, iterations), torch.zeros(images, iterations, dtype=torch.bool),
            *budget,
        )  # fmt: skip
        folder = tmp_path / name
        (folder / "shards").mkdir(parents=True)
        described = description(images, shape, draws, **setting)
        pieces = Pieces(folder, identity(described))
        cost = Cost(54_172, 21_000, 5400, 30.1)
        for i in range(0, images, 4) if shards else ():
            part = Shard(**{k: v[i : i + 4] for k, v in vars(shard).items()})
            part.save(pieces, shard_name(i // 4), cost)
        if examples:
            pair = {"clean": x[:8] * 1.05, "adversarial": x_adv[:8] * 1.05}  # beyond 1 by a little
            pieces.write_tensors("examples.safetensors", pair)
        if members:
            described["attack"] = {"name": "Ensemble", "members": [named(m) for m in members]}
        card = card_of(
            described, shard, gradient_check(exact=exact), checks, cost,
            title=title, command=command, memory=433 * 2**20,
            fitting=Fitting(folder / "chunk.json", Chunk(128), 128), device=torch.device("cpu"),
        )  # fmt: skip
        keep_card(pieces, card)
        return folder

    return make
