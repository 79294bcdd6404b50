"""Attacks on something simpler in the defence's place, whose images the defence then meets."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from depure.attacks.asking.model import Model
from depure.attacks.base import Attack, TraceOf, Watch, trace_of_inner
from depure.attacks.case import Case
from depure.attacks.settings import check_count
from depure.noise import Noise
from depure.threat.balls import Ball


@dataclass(frozen=True)
class SubstituteAttack(Attack):
    """An attack on another model in place of the defence, confirmed on the defence itself.

    With the defence under BPDA for a source (in `Defended`, the purifier wrapped in `BPDA`, or
    with `backprop=Straight()`) and an attack with EoT, it is BPDA+EOT (Athalye et al.,
    1802.00420; Hill et al., 2005.13525): DiffPure's settings are 50 steps of 2/255, EoT 15,
    mean logits, and 150 draws to confirm. With a shorter chain for a source it is the surrogate
    attack of Lee & Kim (2303.09051). For the bare classifier there is `Transfer`.

    A proposal is kept only if it is better than the image itself on `judge_draws` draws common to
    both that the attack never saw: lower mean accuracy, or equal and a larger mean margin. This is
    the averaged final check; what it keeps is judged again by the evaluation.

    Args:
        attack: any; what its watch hears is measured on the source.
        source: the model that is attacked; it draws noise at the same stages, or at none.
        judge_draws: draws of the defence that confirm (one, if all noise is known).

    Raises:
        ValueError: a setting is out of range; at the call, the source has other stages.
    """

    attack: Attack
    source: Model = field(repr=False)
    judge_draws: int = 150

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(f"attack must be an attack; got {self.attack!r}")
        check_count("judge_draws", self.judge_draws)

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those of the attack."""
        return self.attack.balls

    @property
    def trace_of(self) -> TraceOf:
        """The attack on the source."""
        return trace_of_inner(self.attack)

    @property
    def needs_gradient(self) -> bool:
        """No: it asks the source for gradients, and the defence for answers."""
        return False

    def trace_length(self, case: Case) -> int:
        """That of the attack."""
        return self.attack.trace_length(case.on(self.source))

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); x itself where none was confirmed.

        Raises:
            ValueError: the source draws noise at a stage that the defence does not have.
        """
        strange = [s for s in self.source.stages if s not in case.model.stages]
        if strange:
            raise ValueError(
                f"the source draws noise at {self.source.stages}, the defence at "
                f"{case.model.stages}: {strange[0]!r} would be known to nobody; make the source "
                f"from the same purifier"
            )
        missing = any(stage not in self.source.stages for stage in case.noise.held)
        noise = Noise(case.noise.keys) if missing else case.noise  # a stage held must be there
        x_adv = self.attack(
            self.source, case.x, case.y, case.ball, noise.fold("stand-in"), watch=watch
        )
        return case.keep_better(case.x, x_adv, self.judge_draws, ("stand-in judge",))


@dataclass(frozen=True)
class Transfer(Attack):
    """An attack on the classifier without its purifier, whose images the defence then meets.

    It uses no gradient of the defence, so masked gradients do not stop it. What its watch hears is
    measured on the bare classifier.

    Args:
        attack: any; where there is no noise, EoT is one draw.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode.
    """

    attack: Attack
    classifier: nn.Module = field(repr=False)

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those of the attack."""
        return self.attack.balls

    @property
    def trace_of(self) -> TraceOf:
        """The attack on the classifier."""
        return trace_of_inner(self.attack)

    @property
    def needs_gradient(self) -> bool:
        """No: it asks the classifier for gradients, and the defence for nothing."""
        return False

    def trace_length(self, case: Case) -> int:
        """That of the attack."""
        return self.attack.trace_length(self._bare(case))

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); the defence is not asked.

        Raises:
            ValueError: a part of the classifier is in train mode.
        """
        if any(part.training for part in self.classifier.modules()):
            raise ValueError(
                "the classifier to transfer from is in train mode, where its answers depend on "
                "the batch or on chance: call classifier.eval()"
            )
        bare = self._bare(case)
        return self.attack(bare.model, bare.x, bare.y, bare.ball, bare.noise, watch=watch)

    def _bare(self, case: Case) -> Case:
        noise = Noise(case.noise.keys)  # the stages that are held are the purifier's
        return case.on(_Bare(self.classifier), noise)


class _Bare(nn.Module):
    """A classifier as a defence without noise."""

    stages: tuple[str, ...] = ()

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits
