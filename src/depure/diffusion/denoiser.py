"""A frozen denoising network with one answer, whatever it was trained to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from depure.diffusion.schedules import Prediction, Schedule
from depure.types import Time


class Estimate(NamedTuple):
    """What a denoiser knows at (x_t, t): x_t = alpha x0 + sigma eps, each (B, C, H, W)."""

    x0: Tensor
    eps: Tensor


class Denoiser(nn.Module):
    """`(x_t, t) -> Estimate(x0, eps)` around a network `(x, labels) -> prediction`.

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
        prediction: Prediction = "epsilon",
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

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """Estimates, see `forward`."""
        estimate: Estimate = super().__call__(x, t)
        return estimate

    def forward(self, x: Tensor, t: Time) -> Estimate:
        """Estimates for x (B, C, H, W) in diffusion space at the scalar time t."""
        if self.schedule.data_scale is not None:
            return self._preconditioned(x, self.schedule.sigma(t), self.schedule.data_scale)
        out = self._predict(x, t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction == "epsilon":
            return Estimate((x - sigma * out) / alpha, out)
        if self.prediction == "x0":
            return Estimate(out, (x - alpha * out) / sigma)
        return Estimate(alpha * x - sigma * out, sigma * x + alpha * out)

    def _preconditioned(self, x: Tensor, sigma: float, sigma_data: float) -> Estimate:
        """EDM's x0, and eps = (x - x0) / sigma written out, free of that cancellation."""
        total = sigma**2 + sigma_data**2
        c_in = total**-0.5
        raw = self._predict(c_in * x, sigma)
        slope = (sigma_data if self.prediction == "edm" else -sigma_data) * c_in * raw
        x0 = sigma_data**2 / total * x + sigma * slope
        return Estimate(x0, sigma / total * x - slope)

    def _predict(self, x: Tensor, t: Time) -> Tensor:
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
        out = getattr(out, "sample", out)
        out = out[0] if isinstance(out, tuple) and out else out
        if not isinstance(out, Tensor):
            raise ValueError(
                f"the denoising network returned {type(out).__name__}: it must return a tensor, "
                f"a tuple that begins with one, or an object with .sample"
            )
        channels = x.shape[1]
        if out.shape == (x.shape[0], 2 * channels, *x.shape[2:]):
            out = out[:, :channels]
        if out.shape != x.shape:
            raise ValueError(
                f"the denoising network returned shape {tuple(out.shape)} for images of shape "
                f"{tuple(x.shape)}: it must keep the shape (or double the channels)"
            )
        return out

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
        prediction: Prediction | None = None,
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
