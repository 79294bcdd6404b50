"""The continuous adjoint of the reverse SDE, through torchsde."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from depure.diffusion.backprop.base import Backprop
from depure.diffusion.backprop.checkpoint import Checkpoint
from depure.diffusion.chain import Chain, ReverseSDE

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
        """The image at the end, with or without gradients, each round solved by torchsde.

        Raises:
            ValueError: unless the chain is a reverse SDE (EulerMaruyama on a VPSDE) that ends
                above t = 0, with frozen weights.
            ImportError: without torchsde.
        """
        sde = _checked(chain)
        torchsde = _torchsde()
        ends = torch.tensor([0.0, sde.steps], dtype=torch.float64)
        (state,) = chain.start
        for turn in range(sde.rounds):
            start = sde.begin(turn, state)
            state = torchsde.sdeint_adjoint(
                _Flat(sde, start.shape),
                start.flatten(1),
                ends,
                bm=_Brownian(sde, turn, start.detach()),
                method="euler",
                adjoint_method=self.method,
                dt=1.0,
                adjoint_params=(),
            )[-1].view_as(start)
        return chain.end((sde.finish(state),))

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link: the backward solve differentiates one step at a time."""
        return Checkpoint().at_once(chain, x)


def _torchsde() -> Any:
    try:
        import torchsde
    except ImportError as error:
        raise ImportError(
            "the adjoint method needs torchsde, which is not installed: "
            "pip install 'depure[adjoint]'"
        ) from error
    return torchsde


def _checked(chain: Chain) -> ReverseSDE:
    """What the chain solves, or ValueError where this adjoint would not be its own."""
    if chain.sde is None:
        raise ValueError(
            "the continuous adjoint is that of a reverse SDE (EulerMaruyama on a VPSDE), which "
            "this chain is not: use Checkpoint(), which is exact for every chain"
        )
    if torch.is_grad_enabled() and chain.trained:
        raise ValueError(
            "Adjoint differentiates images only, but the network's weights require gradients: "
            "freeze them, or use Checkpoint() to differentiate both"
        )
    if chain.sde.last_sigma == 0.0:
        raise ValueError(
            "the adjoint starts at the last time of the path, where the noise level is 0 and the "
            "score is infinite: use convention='diffpure', which ends at 1e-5"
        )
    return chain.sde


class _Flat:
    """A reverse SDE as torchsde wants it, on flat states (B, D), in time that counts its steps.

    Hence torchsde takes exactly the chain's steps, at exactly its times.
    """

    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, sde: ReverseSDE, shape: torch.Size) -> None:
        self.sde, self.shape = sde, shape

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """Drift per step, (B, D)."""
        return self.sde.drift(round(u.item()), y.view(self.shape)).flatten(1)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """Standard deviation per step, (B, D)."""
        return torch.full_like(y, self.sde.spread(round(u.item())))


class _Brownian:
    """The Brownian path that the chain's own keyed noise spells out, in torchsde's protocol.

    W(i + 1) - W(i) is the standard normal z of reverse step i, made anew whenever asked, so the
    forward and the backward solve see one path and nothing is stored.
    """

    levy_area_approximation = "none"

    def __init__(self, sde: ReverseSDE, turn: int, like: Tensor) -> None:
        self.sde, self.turn, self.like = sde, turn, like
        self.shape = (len(like), like[0].numel())
        self.dtype, self.device = like.dtype, like.device

    def __call__(
        self, ua: Tensor, ub: Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor:
        """W(ub) - W(ua), (B, D), for whole steps ua <= ub; areas (U, A) are never asked for."""
        total = torch.zeros_like(self.like)
        for i in range(round(ua.item()), round(ub.item())):
            z = self.sde.noise(self.turn, i, self.like)
            total = total if z is None else total + z
        return total.flatten(1)
