"""Depure: diffusion-based adversarial purification that can be trusted.

The names below are the whole surface most scripts need; parts live in `depure.diffusion`,
`depure.purifiers`, `depure.defences`, `depure.attacks` and `depure.evaluation`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from depure.attacks import PGD as PGD
    from depure.data import Images as Images
    from depure.data import digits as digits
    from depure.data import image_folder as image_folder
    from depure.defences import Defended as Defended
    from depure.diffusion import DDIM as DDIM
    from depure.diffusion import DDPM as DDPM
    from depure.diffusion import VPSDE as VPSDE
    from depure.diffusion import Blind as Blind
    from depure.diffusion import Checkpoint as Checkpoint
    from depure.diffusion import Denoiser as Denoiser
    from depure.diffusion import EulerMaruyama as EulerMaruyama
    from depure.diffusion import Full as Full
    from depure.diffusion import ProbabilityFlow as ProbabilityFlow
    from depure.diffusion import Straight as Straight
    from depure.diffusion import Surrogate as Surrogate
    from depure.diffusion import VPDiscrete as VPDiscrete
    from depure.evaluation import evaluate as evaluate
    from depure.evaluation import verify_gradient as verify_gradient
    from depure.noise import Noise as Noise
    from depure.purifiers import BPDA as BPDA
    from depure.purifiers import DiffPure as DiffPure
    from depure.purifiers import Identity as Identity
    from depure.reporting import report as report
    from depure.threat import L2 as L2
    from depure.threat import Linf as Linf
    from depure.threat import Threat as Threat
    from depure.zoo import load_classifier as load_classifier
    from depure.zoo import load_denoiser as load_denoiser

_HOME = {
    "depure.attacks": ("PGD",),
    "depure.data": ("Images", "digits", "image_folder"),
    "depure.defences": ("Defended",),
    "depure.diffusion": (
        "DDIM", "DDPM", "VPSDE", "Blind", "Checkpoint", "Denoiser", "EulerMaruyama", "Full",
        "ProbabilityFlow", "Straight", "Surrogate", "VPDiscrete",
    ),
    "depure.evaluation": ("evaluate", "verify_gradient"),
    "depure.noise": ("Noise",),
    "depure.purifiers": ("BPDA", "DiffPure", "Identity"),
    "depure.reporting": ("report",),
    "depure.threat": ("L2", "Linf", "Threat"),
    "depure.zoo": ("load_classifier", "load_denoiser"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch takes seconds, `depure --help` should not."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'depure' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
