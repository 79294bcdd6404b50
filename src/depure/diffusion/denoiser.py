"""A frozen denoising network with one answer, whatever it was trained to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from depure.diffusion.prediction import Denoised, as_images, named_prediction
from depure.diffusion.schedules import PredictionName, Schedule
from depure.types import Time


class Denoiser(nn.Module):
    """`(x_t, t) -> Denoised(x0, eps)` around a network `(x, labels) -> prediction`.

    The network may return a tensor, a tuple or an object with `.sample` (diffusers); twice as
    many channels as its input means a learned variance, which is dropped. It is put into eval
    mode, where it must stay (dropout would make recomputed gradients wrong), and its weights are
    frozen unless `freeze=False`.

    Args:
        network: called as `network(x, labels)`, labels (B,) int64 or of the dtype of x.
        schedule: the noise schedule of the times given.
        prediction: "epsilon" (noise), "x0" (image) or "v" = alpha eps - sigma x0 (2202.00512).
            On a `Karras` schedule "edm": the network is the raw F of EDM's preconditioning,
            x0 = c_skip x + c_out F(c_in x, c_noise) (2206.00364, equation 7 and table 1); or "v",
            which is -F there (and the v above where sigma_data is 1).

    Raises:
        ValueError: if the prediction is none of the schedule's.

    Example:
        >>> denoiser = Denoiser.from_diffusers("path/to/ddpm-cifar10")  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: PredictionName = "epsilon",
        *,
        freeze: bool = True,
    ) -> None:
        super().__init__()
        known = schedule.predictions
        if prediction not in known:
            raise ValueError(
                f"prediction must be one of {', '.join(known)}; got {prediction!r}: "
                f'"edm" goes with the schedule Karras and no other; the schedule is {schedule!r}'
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self._formula = named_prediction(prediction, schedule.data_scale)
        if freeze:
            network.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> int | None:
        """Image channels that the network takes, where its configuration says so."""
        channels = getattr(getattr(self.network, "config", None), "in_channels", None)
        return None if channels is None else int(channels)

    @property
    def size(self) -> tuple[int, ...] | None:
        """Height and width that the network was trained on, where its configuration says so."""
        size = getattr(getattr(self.network, "config", None), "sample_size", None)
        return (size, size) if isinstance(size, int) else None if size is None else tuple(size)

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode.

        Raises:
            ValueError: if mode is true; train the network itself, before wrapping it.
        """
        if mode:
            raise ValueError(
                "a Denoiser stays in eval mode (dropout makes recomputed gradients wrong): "
                "train the network itself and wrap it afterwards"
            )
        return super().train(False)

    def __call__(self, x: Tensor, t: Time) -> Denoised:
        """Estimates, see `forward`."""
        denoised: Denoised = super().__call__(x, t)
        return denoised

    def forward(self, x: Tensor, t: Time) -> Denoised:
        """Estimates for x (B, C, H, W) in diffusion space at the scalar time t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        raw = self._raw(self._formula.network_input(x, alpha, sigma), t)
        return self._formula.denoised(raw, x, alpha, sigma)

    def _raw(self, x: Tensor, t: Time) -> Tensor:
        label = self.schedule.label(t)
        dtype = torch.int64 if isinstance(label, int) else x.dtype
        times = torch.full((x.shape[0],), label, dtype=dtype, device=x.device)
        try:
            out: object = self.network(x, times)
        except TypeError as error:  # a setting of the wrong type, noticed where it is used
            raise ValueError(
                f"the denoising network {type(self.network).__name__} does not run on images of "
                f"shape {tuple(x.shape)}: a setting in its configuration, or an argument of its "
                f"forward method, is not what it expects"
            ) from error
        return as_images(out, x)[:, : x.shape[1]]

    def signature(self) -> str:
        """One line that says what this denoiser is, for records."""
        weights = sum(p.numel() for p in self.network.parameters())
        kind = type(self.network).__name__
        return f"{kind}({weights:,} weights, {self.prediction}, {self.schedule!r})"

    @staticmethod
    def from_diffusers(
        source: str | Path | nn.Module,
        scheduler: object | None = None,
        *,
        schedule: Schedule | None = None,
        prediction: PredictionName | None = None,
    ) -> Denoiser:
        """From a `UNet2DModel` with its scheduler, or a folder that diffusers saved (safetensors).

        Args:
            source: the network, or a folder holding `unet/` and `scheduler/`, or a UNet's own
                folder (then `scheduler` or `schedule` says how it was trained).
            scheduler: a diffusers scheduler (or its config, a dict): betas and prediction type.
            schedule: use this schedule instead of the scheduler's, e.g. `VPSDE()` to purify with
                a network trained on the discrete indices along the continuous SDE (DiffPure).
            prediction: what the network predicts, where no scheduler says so ("epsilon") or
                where it is wrong.

        Raises:
            FileNotFoundError: if the folder or its files are missing.
            ValueError: if the files cannot be read or the scheduler is of an unknown kind.
        """
        from depure.diffusion.from_diffusers import read_folder, read_scheduler

        if isinstance(source, nn.Module):
            network, found = source, None
        else:
            network, found = read_folder(Path(source))
        config: Any = scheduler if scheduler is not None else found
        if config is None and schedule is None:
            raise ValueError(
                "no scheduler found beside the network: pass scheduler= (diffusers) or schedule="
            )
        if config is None:
            return Denoiser(network, cast(Schedule, schedule), prediction or "epsilon")
        trained, found_prediction = read_scheduler(config)
        return Denoiser(network, schedule or trained, prediction or found_prediction)
