"""The published RayS and AdverTorch's SPSA, run as they are on a CPU without torchvision."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from depure.attacks import SPSA, RayS
from depure.threat import Linf

Published = Callable[[nn.Module, Tensor, Tensor], Tensor]


def published_rays(clone: Path, ball: Linf, ours: RayS) -> Published:
    """RayS (github.com/uclaml/RayS) with the queries of ours; it draws no random numbers."""

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _on_the_cpu(), _importable(clone, pgbar={"progress_bar": lambda *a, **k: None}):
            wrapped = importlib.import_module("general_torch_model").GeneralTorchModel(classifier)
            found = importlib.import_module("RayS").RayS(wrapped, epsilon=ball.eps)
            x_adv, _, distance, won = found(x, y, query_limit=ours.steps)
        # It hands over its nearest wrong point, which may lie outside of the ball: not a win.
        inside = won & (distance <= ball.eps)
        return torch.where(inside.view(-1, 1, 1, 1), ball.project(x_adv, x), x)

    return attack


def published_spsa(clone: Path, ball: Linf, ours: SPSA, seed: int) -> Published:
    """LinfSPSAAttack (github.com/BorealisAI/advertorch) with the iterations and samples of ours."""

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(seed)
        empty = {"transforms": mock.MagicMock()}  # imported there, not used by SPSA
        with _importable(clone, torchvision=empty):
            module = importlib.import_module("advertorch.attacks.spsa")
            found = module.LinfSPSAAttack(
                classifier, ball.eps, ours.delta, lr=ours.lr or 0.01, nb_iter=ours.steps,
                nb_sample=ours.samples,
            )  # fmt: skip
            x_adv: Tensor = found.perturb(x, y)
        return ball.project(x_adv, x)

    return attack


@contextlib.contextmanager
def _importable(clone: Path, **stubs: dict[str, object]) -> Iterator[None]:
    """The clone on the path, with stand-ins for modules that it imports for other purposes."""
    made = {}
    for name, members in stubs.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(members)
    with (
        mock.patch.dict(sys.modules, made),
        mock.patch.object(sys, "path", [str(clone), *sys.path]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def _on_the_cpu() -> contextlib.AbstractContextManager[object]:
    """`.cuda()` leaves tensors where they are."""
    return mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self)
