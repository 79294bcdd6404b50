"""The continuous adjoint of the reverse SDE, through torchsde."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from depure.diffusion.backprop.base import Backprop
from depure.diffusion.chain import Chain
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Path
from depure.diffusion.samplers.sde import EulerMaruyama, reverse_drift
from depure.diffusion.schedule import VPSDE

Method = Literal["milstein", "euler"]


@dataclass(frozen=True)
class Adjoint(Backprop):
    """The gradient DiffPure attacked itself with (2205.07460, section 3.3; Li et al., 2001.01328).

    torchsde integrates forward with Euler-Maruyama, keeps the end only, and for the gradient
    integrates state and adjoint backwards from there along the same Brownian path. The value
    is that of `Full` to rounding. The gradient is approximate, because the backward solve meets
    other states and takes its slopes at the other end of each step: with few steps it can point
    anywhere. A baseline to compare with, not an attack to trust.

    Only the images are differentiated (`adjoint_params=()`). DiffPure's own program carries
    every weight of the network in the adjoint state: the same image gradient at a higher price.

    Needs torchsde: `pip install 'depure[adjoint]'`.

    Args:
        method: the solver of the backward pass; torchsde's default for this noise is "milstein".

    Example:
        >>> defence = purifier.with_backprop(Adjoint())  # doctest: +SKIP
    """

    method: Method = "milstein"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"method must be one of {', '.join(get_args(Method))}; got {self.method!r}"
            )

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """The end of the chain, with or without gradients, each round solved by torchsde.

        Raises:
            ValueError: unless the chain is EulerMaruyama on a VPSDE that ends above t = 0, with
                frozen weights.
            ImportError: without torchsde.
        """
        path, schedule = _checked(chain)
        torchsde = _torchsde()
        ends = torch.tensor([0.0, len(path.times) - 1], dtype=torch.float64)
        for turn in range(chain.rounds):
            start = chain.noised(path, turn, x)
            x = torchsde.sdeint_adjoint(
                _ReverseSDE(chain.denoiser, schedule, path, start.shape),
                start.flatten(1),
                ends,
                bm=_Brownian(chain, path, turn, start.detach()),
                method="euler",
                adjoint_method=self.method,
                dt=1.0,
                adjoint_params=(),
            )[-1].view_as(start)
        return x.clamp(-1.0, 1.0) if chain.clamp else x

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link: the backward solve differentiates one step at a time."""
        return chain.links()[0](x)


def _torchsde() -> Any:
    try:
        import torchsde
    except ImportError as error:
        raise ImportError(
            "the adjoint method needs torchsde, which is not installed: "
            "pip install 'depure[adjoint]'"
        ) from error
    return torchsde


def _checked(chain: Chain) -> tuple[Path, VPSDE]:
    """The chain's path and schedule, or ValueError where this adjoint would not be its own."""
    schedule = chain.denoiser.schedule
    if not isinstance(chain.sampler, EulerMaruyama) or not isinstance(schedule, VPSDE):
        raise ValueError(
            f"the continuous adjoint is that of EulerMaruyama on a VPSDE; got {chain.sampler!r} on "
            f"{schedule!r}: use Checkpoint(), which is exact for every sampler"
        )
    if torch.is_grad_enabled() and any(p.requires_grad for p in chain.denoiser.parameters()):
        raise ValueError(
            "Adjoint differentiates images only, but the network's weights require gradients: "
            "freeze them, or use Checkpoint() to differentiate both"
        )
    path = chain.grid.path(schedule)
    if schedule.sigma(path.times[-1]) == 0.0:
        raise ValueError(
            f"the adjoint starts at the last time of the path, {path.times[-1]}, where the score "
            f"is infinite: use convention='diffpure', which ends at 1e-5"
        )
    return path, schedule


class _ReverseSDE:
    """The reverse VP-SDE as torchsde wants it, on flat states (B, D).

    Time counts the steps of the path, 0, 1, ..., so that floats do not accumulate and torchsde
    takes exactly the chain's steps, at exactly its times.
    """

    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, denoiser: Denoiser, schedule: VPSDE, path: Path, shape: torch.Size) -> None:
        self.denoiser, self.schedule, self.times, self.shape = denoiser, schedule, path.times, shape
        self.spacing = (path.times[0] - path.times[-1]) / (len(path.times) - 1)

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """Drift per step, (B, D)."""
        drift = reverse_drift(self.denoiser, y.view(self.shape), self.times[round(u.item())], 1.0)
        return (drift * self.spacing).flatten(1)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """Standard deviation per step, (B, D)."""
        beta = self.schedule.beta(self.times[round(u.item())])
        return torch.full_like(y, math.sqrt(beta * self.spacing))


class _Brownian:
    """The Brownian path that the chain's own keyed noise spells out, in torchsde's protocol.

    W(i + 1) - W(i) is the standard normal z of reverse step i, made anew whenever asked, so the
    forward and the backward solve see one path and nothing is stored.
    """

    levy_area_approximation = "none"

    def __init__(self, chain: Chain, path: Path, turn: int, like: Tensor) -> None:
        self.chain, self.path, self.turn, self.like = chain, path, turn, like
        self.shape = (len(like), like[0].numel())
        self.dtype, self.device = like.dtype, like.device

    def __call__(
        self, ua: Tensor, ub: Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor:
        """W(ub) - W(ua), (B, D), for whole steps ua <= ub; areas (U, A) are never asked for."""
        total = torch.zeros_like(self.like)
        for i in range(round(ua.item()), round(ub.item())):
            z = self.chain.reverse_noise(self.path, self.turn, i, self.like)
            total = total if z is None else total + z
        return total.flatten(1)
