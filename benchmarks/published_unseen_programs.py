"""The published StAdv, ReColorAdv, PPGD, LPA and LF, run as they are on a CPU.

Their files are imported from clones; what they import for other purposes (torchvision,
robustness, lpips, progress bars) is a stand-in while they run. See published_unseen.py.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.attacks import LPA, PPGD, LowFrequency, ReColorAdv, StAdv
from depure.attacks.unseen.recolor import colouring
from depure.attacks.unseen.search import variation
from depure.attacks.unseen.stadv import bend
from depure.networks.features.distance import FeatureDistance
from depure.threat import Flow, Linf, Perceptual

Published = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (classifier, x, y) -> x_adv
_ABSENT = (
    "torchvision", "robustness", "advex_uar", "six", "matplotlib", "lpips", "kornia",
    "pytorch_forecasting", "tqdm",
)  # fmt: skip
_BATCH = 50  # the perceptual programs decide some things for a batch as a whole


class Wrapped(nn.Module):
    """A classifier with the features that perceptual-advex asks a network for."""

    def __init__(self, classifier: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.classifier, self.layers = classifier, layers
        self.eval()

    def features_logits(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Outputs of the layers, and logits."""
        kept: dict[str, Tensor] = {}
        parts = dict(self.classifier.named_modules())
        handles = [
            parts[name].register_forward_hook(lambda m, a, out, name=name: kept.update({name: out}))
            for name in self.layers
        ]
        try:
            logits = self.classifier(x)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(kept[name] for name in self.layers), logits

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the layers."""
        return self.features_logits(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.features_logits(x)[1]


class _Absent:
    """Finds a stand-in for every module of the packages that are not needed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        wanted = name.partition(".")[0] in _ABSENT
        return ModuleSpec(name, self, is_package=True) if wanted else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        return mock.MagicMock(name=spec.name, __path__=[], __spec__=spec)

    def exec_module(self, module: Any) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def _importable(*clones: Path) -> Iterator[None]:
    """The clones on the path and stand-ins in the place of what they do not need."""
    with (
        mock.patch.dict(sys.modules),
        mock.patch.object(sys, "path", [*map(str, clones), *sys.path]),
        mock.patch.object(sys, "meta_path", [_Absent(), *sys.meta_path]),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        for name in [n for n in sys.modules if n.partition(".")[0] in _ABSENT]:
            del sys.modules[name]
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _beyond(padding: str) -> Iterator[None]:
    """What mister_ed's flows fetch from beyond the border: "zeros", as published, or "border"."""
    module = importlib.import_module("recoloradv.mister_ed.spatial_transformers")
    sample = partial(functional.grid_sample, padding_mode=padding, align_corners=False)
    grid = partial(functional.affine_grid, align_corners=False)
    stand_in = types.SimpleNamespace(grid_sample=sample, affine_grid=grid)
    with mock.patch.object(module, "F", stand_in):
        yield


def published_stadv(
    advex: Path | None, mister: Path | None, ball: Flow, ours: StAdv, padding: str
) -> Published | None:
    """StAdvAttack of perceptual-advex (mister_ed's StAdv with a projection) at our settings."""
    if advex is None or mister is None:
        return None

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _importable(advex, mister), _beyond(padding):
            module = importlib.import_module("perceptual_advex.attacks")
            found = module.StAdvAttack(
                classifier, bound=ball.eps, num_iterations=ours.steps, lr=ours.lr
            )
            found.perturbation_norm_loss = ours.smooth
            x_adv: Tensor = found(x, y)
        return x_adv.detach()

    return attack


def published_recolor(
    advex: Path | None, mister: Path | None, ball: Linf, ours: ReColorAdv, space: str
) -> Published | None:
    """ReColorAdvAttack of perceptual-advex in CIE-LUV ("luv"), as it is, or in RGB as ours."""
    if advex is None or mister is None:
        return None

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _importable(advex, mister):
            module = importlib.import_module("perceptual_advex.attacks")
            found = module.ReColorAdvAttack(
                classifier, bound=ball.eps, num_iterations=ours.steps, lr=ours.lr
            )
            found.perturbation_norm_loss = ours.smooth
            if space == "rgb":
                threat, side = found.threat_model(), ours.resolution
                threat.param_kwargs.cspace = module.cs.RGBColorSpace()
                threat.param_kwargs.xform_params = dict.fromkeys(
                    ("resolution_x", "resolution_y", "resolution_z"), side
                )
                found.threat_model = lambda: threat
            x_adv: Tensor = found(x, y)
        return x_adv.detach()

    return attack


def _in_batches(
    advex: Path, mister: Path, ball: Perceptual, seed: int, name: str, **settings: Any
) -> Published:
    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(seed)
        with _importable(advex, mister):
            module = importlib.import_module("perceptual_advex.perceptual_attacks")
            model = Wrapped(classifier, ball.metric.layers)
            found = getattr(module, name)(model, bound=ball.eps, **settings)
            pairs = zip(torch.split(x, _BATCH), torch.split(y, _BATCH), strict=True)
            return torch.cat([found(a.clone(), b).detach() for a, b in pairs])

    return attack


def published_ppgd(
    advex: Path | None, mister: Path | None, ball: Perceptual, ours: PPGD, seed: int,
    kappa: float = math.inf,
) -> Published | None:  # fmt: skip
    """PerceptualPGDAttack of perceptual-advex at our settings."""
    if advex is None or mister is None:
        return None
    return _in_batches(
        advex, mister, ball, seed, "PerceptualPGDAttack", step=ours.step, kappa=kappa,
        num_iterations=ours.steps, cg_iterations=ours.conjugate,
    )  # fmt: skip


def published_lpa(
    advex: Path | None, mister: Path | None, ball: Perceptual, ours: LPA, seed: int
) -> Published | None:
    """LagrangePerceptualAttack of perceptual-advex at our settings."""
    if advex is None or mister is None:
        return None
    return _in_batches(
        advex, mister, ball, seed, "LagrangePerceptualAttack", step=ours.step, kappa=math.inf,
        num_iterations=ours.steps, binary_steps=ours.rounds,
    )  # fmt: skip


class _Judge(nn.Module):
    """A classifier with what DiffBreak's LF asks a model for."""

    def __init__(self, classifier: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.classifier, self.loss = classifier, loss

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(x)  # type: ignore[no-any-return]

    def get_loss_fn(self) -> nn.Module:
        """What it lowers."""
        return self.loss

    def set_y_orig(self, y: Tensor) -> None:
        """For targeted losses alone."""

    def eval_attack(self, x: Tensor, y: Tensor, targeted: bool) -> tuple[float, float, float]:
        """Whether the images are wrong."""
        wrong = float((self.classifier(x.clamp(0.0, 1.0)).argmax(1) != y).all())
        return wrong, wrong, wrong


def _bell(kernel: tuple[int, int], sigma: Tensor) -> Tensor:
    """kornia's get_gaussian_kernel2d, (1, K, K)."""
    lines: list[Tensor] = []
    for size, spread in zip(kernel, sigma[0], strict=True):
        found = (-0.5 * ((torch.arange(size) - size // 2) / spread).square()).exp()
        lines.append(found / found.sum())
    return (lines[0][:, None] * lines[1])[None]


def published_lf(
    clone: Path | None, ball: Perceptual, ours: LowFrequency, colour: float
) -> Published | None:
    """DiffBreak's LF at its settings for CIFAR-10, one image at a time, with our distance."""
    if clone is None:
        return None

    def attack(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _importable(clone):
            for name in ("DiffBreak", "DiffBreak.attacks", "DiffBreak.utils"):
                package = types.ModuleType(name)  # whose __init__ imports everything
                package.__path__ = [str(clone / name.replace(".", "/"))]
                sys.modules[name] = package
            shapes: Any = importlib.import_module("pytorch_forecasting.utils")
            shapes.unsqueeze_like = lambda a, b: a.view(-1, *[1] * (b.ndim - 1))
            module: Any = importlib.import_module("DiffBreak.attacks.lf")
            module.kornia.filters.get_gaussian_kernel2d = _bell
            module.OurDistance = lambda: ball.metric
            losses = importlib.import_module("DiffBreak.utils.losses")
            found = module.LF(
                _Judge(classifier, losses.MarginLoss(targeted=False, negate=True)),
                {"class": "OurDistance"}, ball.eps,
                {"grad_sgn": False, "learning_rate": {"values": [ours.filter_lr, ours.lr]},
                 "regularization": {"type": "l2", "factor": 0.0}},
                filter_args={"loss_factor": 0.0, "sigma_color": colour,
                             "kernels": [[k, k] for k in ours.kernels]},
                max_iterations=ours.steps, initial_const=1e8,
            )  # fmt: skip
            pairs = zip(torch.split(x, 1), torch.split(y, 1), strict=True)
            return torch.cat([found(a, b, b)[0].detach().clamp(0.0, 1.0) for a, b in pairs])

    return attack


def checks(advex: Path | None, mister: Path | None, model: Wrapped, photos: Tensor) -> list[str]:
    """How far our threats are from theirs, on random images and numbers."""
    if advex is None or mister is None:
        return ["not checked: --perceptual-advex and --recoloradv are not given"]
    draw = torch.Generator().manual_seed(0)
    x, other = torch.rand(2, 64, 3, 32, 32, generator=draw)
    near = (x + 0.05 * torch.randn(x.shape, generator=draw)).clamp(0.0, 1.0)
    flow = 0.1 * torch.rand(64, 2, 32, 32, generator=draw) - 0.05
    change = 0.12 * torch.rand(64, 3, 16, 16, 16, generator=draw) - 0.06
    with torch.no_grad(), _importable(advex, mister), _beyond("border"):
        module = importlib.import_module("perceptual_advex.attacks")
        theirs = importlib.import_module("perceptual_advex.distances").LPIPSDistance(model)
        ours = FeatureDistance(model.classifier, model.layers)
        bent = module.st.FullSpatial(shape=x.shape)
        bent.xform_params.data += flow.flip(1).permute(0, 2, 3, 1)
        sizes = {f"resolution_{axis}": 16 for axis in "xyz"}
        coloured = module.ct.FullSpatial(shape=x.shape, cspace=module.cs.RGBColorSpace(), **sizes)
        coloured.xform_params.data += change.permute(0, 2, 3, 4, 1)
        pairs = {
            "feature distance of unrelated images": (ours(x, other), theirs(x, other)),
            "feature distance of near images": (ours(x, near), theirs(x, near)),
            "feature distance of photographs from random images": (
                ours(photos, x[: len(photos)]),
                theirs(photos, x[: len(photos)]),
            ),
            "image bent by a random flow (border beyond)": (bend(x, flow), bent(x)),
            "total variation of the flow": (variation(flow), bent.stAdv_norm()),
            "image recoloured in RGB": (colouring(x, 16)(change), coloured(x)),
            "total variation of the recolouring": (variation(change), coloured.smoothness_norm()),
        }
    return [
        f"{name}: up to {float(a.abs().max()):.4g}, ours and theirs differ by at most "
        f"{float((a - b).abs().max()):.1e}"
        for name, (a, b) in pairs.items()
    ]
