"""What an attacker may do and what they know of the defence's noise."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from depure.noise import Noise
from depure.records import came
from depure.threat.balls import Ball


@dataclass(frozen=True)
class Threat:
    """A ball, and the noise stages whose numbers the attacker knows.

    At the known stages, attacker and judge share exactly the same numbers, per image: knowing
    all stages is the deterministic white-box setting (DW-box), "forward" alone DW-forward,
    "reverse" alone DW-reverse; knowing none is the ordinary white-box with EoT.

    Args:
        ball: what the attacker may change.
        knows: the stages known.
        pool: fixed draws an image has, each a set of numbers for all known stages together; the
            attacker knows them all, but not which one comes next (DW-semi-128 of ADDT: 128).
        mix: share of fresh noise at the known stages, `sqrt(1 - mix**2) known + mix fresh`: 0
            is DW-box, 1 the ordinary white-box.

    Raises:
        ValueError: a setting is out of range, both pool and mix are set, or neither has a stage
            to act on.

    Example:
        >>> Threat(Linf(8 / 255), knows=("forward", "reverse"))
        Threat(ball=Linf(eps=0.03137254901960784), knows=('forward', 'reverse'), pool=1, mix=0.0)
    """

    ball: Ball
    knows: tuple[str, ...] = ()
    pool: int = 1
    mix: float = 0.0

    def __post_init__(self) -> None:
        named = isinstance(self.knows, tuple | list) and all(isinstance(n, str) for n in self.knows)
        if not named:
            raise ValueError(f"knows must be a tuple of stage names; got {came(self.knows)}")
        if not isinstance(self.ball, Ball):
            raise ValueError(f"ball must be a Ball such as Linf(8 / 255); got {came(self.ball)}")
        if not isinstance(self.pool, int) or self.pool < 1:
            raise ValueError(f"pool must be at least 1 draw, a whole number; got {came(self.pool)}")
        if not isinstance(self.mix, Real) or not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must lie in [0, 1]; got {came(self.mix)}")
        if self.pool > 1 and self.mix > 0.0:
            raise ValueError(f"pool and mix exclude each other; got {self.pool} and {self.mix}")
        if (self.pool > 1 or self.mix > 0.0) and not self.knows:
            raise ValueError(
                "pool and mix act on known noise: name stages in knows, e.g. ('forward',)"
            )

    def hold(self, noise: Noise) -> Noise:
        """The noise with the known stages held as this threat says."""
        if self.mix > 0.0:
            return noise.mix(self.mix, *self.knows)
        return noise.pool(self.pool, *self.knows)
