"""What a training is made of, and whether its parts fit the data."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from depure.cli.build import numbered
from depure.data import Images
from depure.diffusion import VPSDE, Denoiser, Karras, Schedule, VPDiscrete
from depure.training import ContinuousProcess, DiscreteProcess, EDMProcess, Process


def process_of(options: dict[str, Any], schedule: Schedule) -> tuple[Process, Schedule]:
    """How a denoiser is trained, and the schedule that it then has."""
    name, t_max = options["family"], options["t_max"]
    if name == "edm":
        scale = schedule.data_scale
        if scale is None:
            schedule, scale = Karras(), Karras().sigma_data
        return EDMProcess(scale, options["p_mean"], options["p_std"]), schedule
    if name == "vpsde":
        return ContinuousProcess(VPSDE(), t_max=t_max), VPSDE()
    if not isinstance(schedule, VPDiscrete):
        raise ValueError(
            f"the family ddpm needs a discrete schedule; the denoiser has {schedule!r}: pass "
            f"--family edm"
        )
    return DiscreteProcess(schedule, t_max), schedule


def check_start(start: Denoiser, images: Images) -> None:
    """Refuse a denoiser that was made for other images."""
    config: Any = getattr(start.network, "config", None)
    channels = getattr(config, "in_channels", images.x.shape[1])
    size = getattr(config, "sample_size", images.x.shape[-1])
    if (channels, size) != (images.x.shape[1], images.x.shape[-1]):
        raise ValueError(
            f"the denoiser takes images of {channels}x{size}x{size}; the data are "
            f"{'x'.join(str(n) for n in images.x.shape[1:])}: choose another, or --image-size"
        )
    try:
        with torch.no_grad():
            start.network(images.x[:1], torch.ones(1))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"--denoiser: its network does not run on the data: {error}") from error


def known_to(
    guide: nn.Module, images: Images, held: Images, options: dict[str, Any]
) -> tuple[Images, Images]:
    """The images labelled as the guide has it; ValueError if it does not take them."""
    try:
        with torch.no_grad():
            logits = guide(images.x[:1])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the guide does not take these images: {error}") from error
    given = options["classes"] is not None
    labelled = partial(numbered, outputs=logits.shape[1], given=given)
    return labelled(images), labelled(held)
