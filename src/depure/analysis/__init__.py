"""Analysis: where the robustness of a purified classifier comes from, as plain arrays."""

from depure.analysis.gradients import Gradients, gradients
from depure.analysis.inception import inception_features
from depure.analysis.landscape import Landscape, landscape
from depure.analysis.purification import Purification, purification
from depure.analysis.quality import Features, Quality, quality
from depure.analysis.stochasticity import Stochasticity, stochasticity
from depure.analysis.store import Cells
from depure.analysis.trajectories import Trajectories, trajectories
from depure.analysis.transfer import Setting, TransferMatrix, transfer

__all__ = [
    "Cells",
    "Features",
    "Gradients",
    "Landscape",
    "Purification",
    "Quality",
    "Setting",
    "Stochasticity",
    "Trajectories",
    "TransferMatrix",
    "gradients",
    "inception_features",
    "landscape",
    "purification",
    "quality",
    "stochasticity",
    "trajectories",
    "transfer",
]
