"""Sanity checks on an evaluation, each with a verdict in plain language."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from depure.answers import NOBODY, answered
from depure.attacks.asking.gradients import distinct_draws
from depure.attacks.asking.journal import journal
from depure.attacks.base import Attack
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation import statistics
from depure.evaluation.gradient_check import GradientCheck
from depure.evaluation.gradient_check.proposal import check_at_proposals
from depure.evaluation.neighbours import neighbours_matter
from depure.evaluation.shards import Shard, base_noise, logits_of, predict
from depure.noise import Noise
from depure.purifiers import Identity
from depure.rows import rows_at_once
from depure.threat import Threat

Verdict = Literal["pass", "warn", "fail"]
_MARGIN = 0.05  # accuracy that a stronger attack may win before it is worth a warning


@dataclass(frozen=True)
class Check:
    """One question asked of an evaluation, and its answer."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, eq=False)
class Trial:
    """What the checks need to run the model again: the parts of one evaluation."""

    model: Defended
    images: Images
    attack: Attack
    threat: Threat
    draws: int
    seed: int
    chunk: int
    device: torch.device
    folder: Path | None = None  # where attacks keep their journals
    run: str = ""  # its identity, for them

    def all_known(self) -> bool:
        """Whether all draws of the noise coincide."""
        base = base_noise(self.model, self.images.index[:1], self.threat, self.seed)
        return distinct_draws(self.model.stages, base, 2) == 1

    def journals(self) -> list[Path]:
        """Journals of attacks that are over or were stopped."""
        return [] if self.folder is None else list(self.folder.glob("check-*.journal"))

    def robust(
        self, name: str, attack: Attack, images: Images, source: Defended | None = None
    ) -> Any:
        """Correctness (n, R) under the judge's draws of images attacked anew, for a named check.

        `source` is the model attacked, where it is not the defence itself (transfer).
        """
        base = base_noise(self.model, images.index, self.threat, self.seed)
        x, y = images.x.to(self.device), images.y.to(self.device)
        plain = Noise.of(self.seed, images.index)  # the source has no stages of which to know
        noise = (plain if source else base).fold("attack")
        file = None if self.folder is None else self.folder / f"check-{name}.journal"
        with nullcontext() if file is None else journal(file, run=self.run):
            x_adv = attack(source or self.model, x, y, self.threat.ball, noise)
        labels = predict(self.model, x_adv, base.fold("judge"), self.draws, self.chunk)
        return (labels == images.y[:, None]).numpy()


def cheap_checks(trial: Trial, shard: Shard, gradient_check: GradientCheck) -> list[Check]:
    """Checks that need no further attack; of a trace only where it is of the defence itself."""
    trace_of = trial.attack.trace_of
    return [
        _gradient(gradient_check, needed=trial.attack.needs_gradient),
        *_at_proposals(trial, shard, gradient_check),
        _randomness(trial),
        _logits(trial),
        _neighbours(trial),
        _ball(trial, shard),
        _finite(shard),
        _answers(shard),
        *_assumed(trial),
        *_chance(trial, shard),
        *_vanishing(shard),
        *(_rises(shard) if trace_of != "several targets" else []),
        *(_moving_target(shard) if trace_of == "defence" else []),
    ]


def costly_checks(trial: Trial, shard: Shard, images: int) -> list[Check]:
    """Attacks that should not win: twice the steps, twice the draws, transfer."""
    some = trial.images[slice(0, images)]
    correct = (shard.adversarial == shard.y[:, None])[: len(some)].numpy()
    found = []
    for name, field in (("more steps", "steps"), ("more EoT draws", "eot")):
        stronger = _doubled(trial.attack, field)
        if stronger is not trial.attack and (field != "eot" or not trial.all_known()):
            value = getattr(trial.attack, field, None)
            what = f"{field} {value} -> {2 * value}" if value else f"{field} of its attacks doubled"
            gain = statistics.difference(correct, trial.robust(field, stronger, some))
            found.append(_compare(name, what, gain, len(some)))
    if trial.model.purifier.defends:
        bare = Defended(Identity(), trial.model.classifier)
        inner = getattr(trial.attack, "attack", trial.attack)  # what a `SubstituteAttack` runs
        moved = trial.robust("transfer", _from_the_image(inner), some, bare)
        gain = statistics.difference(correct, moved)
        found.append(_compare("transfer", "from the undefended classifier", gain, len(some)))
    return found


def _doubled(attack: Any, field: str) -> Any:
    """The attack, or all attacks that it is made of, with twice of one number; itself if none."""

    def twice(one: Any) -> dict[str, Any]:
        value = getattr(one, field, None)
        return {field: 2 * value} if isinstance(value, int) else {}

    return _throughout(attack, twice)


def _from_the_image(attack: Any) -> Any:
    """The attack, or all attacks that it is made of, without a start that may need the defence."""
    return _throughout(attack, lambda one: {"start": None} if getattr(one, "start", None) else {})


def _throughout(attack: Any, changes: Callable[[Any], dict[str, Any]]) -> Any:
    """The attack with changes to it and to all attacks that it is made of; itself if none."""
    changed = changes(attack)
    if isinstance(inner := getattr(attack, "attack", None), Attack):
        changed["attack"] = _throughout(inner, changes)
    if members := getattr(attack, "members", ()):
        changed["members"] = tuple(_throughout(member, changes) for member in members)
    same = all(value == getattr(attack, name) for name, value in changed.items())
    return attack if same else replace(attack, **changed)


def _compare(name: str, what: str, gain: statistics.Interval, n: int) -> Check:
    points = f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    text = f"{what}: wins {points} over the attack reported, on {n} images"
    cure = ": the attack is not converged; give it more steps or draws before quoting the number"
    if name == "transfer":
        cure = ": the white-box attack is too weak, its gradient may be masked"
    if gain.low > 0:
        return Check(name, "warn", text + cure)
    if gain.value > _MARGIN:
        return Check(name, "warn", text + "; it may be stronger: compare on more images")
    doubt = "; too few images to rule out more" if gain.high > 2 * _MARGIN else ""
    return Check(name, "pass", text + doubt)


def _gradient(gradient_check: GradientCheck, *, needed: bool) -> Check:
    own = gradient_check.rows[0] if gradient_check.rows else None
    if own is not None and not gradient_check.passed and not own.exact:
        text = (
            f"approximate by choice of backprop: cosine {own.cosine:.3f}, "
            f"{100 * own.sign_agreement:.0f} % of signs agree with the exact gradient"
            if own.cosine == own.cosine
            else f"approximate by choice; no exact gradient to compare with, finite differences "
            f"are off by {gradient_check.finite_difference_error:.1e}"
        )
        return Check("gradient", "warn", text)
    if not gradient_check.judged:
        return Check("gradient", "warn", gradient_check.verdict)
    if not gradient_check.passed and not needed:
        text = f"this attack asks for no gradient, but others would. {gradient_check.verdict}"
        return Check("gradient", "warn", text)
    return Check("gradient", "pass" if gradient_check.passed else "fail", gradient_check.verdict)


def _at_proposals(trial: Trial, shard: Shard, earlier: GradientCheck) -> list[Check]:
    """The gradient once more, where the attack ended, if it was right where it began."""
    if not (earlier.judged and earlier.passed and trial.attack.needs_gradient):
        return []
    x, y = shard.x_adv.to(trial.device), shard.y.to(trial.device)
    noise = base_noise(trial.model, shard.index, trial.threat, trial.seed).fold("proposals")
    found = check_at_proposals(trial.model, x, y, noise, rows_at_once(x, trial.chunk))
    if not found.judged:
        return [Check("gradient at proposals", "warn", found.verdict)]
    return [Check("gradient at proposals", "pass" if found.passed else "fail", found.verdict)]


def _randomness(trial: Trial) -> Check:
    if not trial.model.stages:
        return Check("randomness", "pass", "the model draws no noise; one draw is enough")
    if trial.all_known():
        return Check(
            "randomness", "pass", "the attacker knows all noise: all draws coincide, one is used"
        )
    some = trial.images[slice(0, 8)]
    base = base_noise(trial.model, some.index, trial.threat, trial.seed)
    x = some.x.to(trial.device)
    a, b = (logits_of(trial.model, x, base.fold("check", i)) for i in (0, 1))
    moved = float((a - b).nan_to_num(0.0, 0.0, 0.0).abs().max())
    if moved > 0:
        text = f"random (logits move by up to {moved:.2g}): judged on {trial.draws} draws"
        return Check("randomness", "pass", text)
    return Check("randomness", "warn", "the defence says it draws noise, but two draws coincide")


def _logits(trial: Trial) -> Check:
    some = trial.images[slice(0, 8)]
    base = base_noise(trial.model, some.index, trial.threat, trial.seed)
    out = logits_of(trial.model, some.x.to(trial.device), base.fold("check"))
    strange = _no_logits(out[answered(out)])
    if strange:
        return Check("logits", "warn", strange)
    return Check("logits", "pass", "outputs are logits; every part is in eval mode")


def _neighbours(trial: Trial) -> Check:
    some = trial.images[slice(0, 4)]
    x = some.x.to(trial.device)
    if rows_at_once(x) > 1:
        text = "an image's answer is the same whatever stands beside it"
        return Check("neighbours", "pass", text)
    noise = base_noise(trial.model, some.index, trial.threat, trial.seed).fold("neighbours")
    if neighbours_matter(trial.model, x, noise, 4) is None:
        return Check("neighbours", "pass", "attacked and judged one image at a time")
    text = (
        "answers depend on the images beside: attacked and judged one at a time, and the result "
        "says nothing of batches"
    )
    return Check("neighbours", "warn", text)


def _no_logits(out: Tensor) -> str | None:
    """What outputs (B, K) of several images are if not logits, in plain words; else None."""
    if not len(out):
        return "no output is finite: nothing can be said of them"
    if ((out == out[:, :1]).all(1)).all() or (len(out) > 1 and (out == out[:1]).all()):
        return "outputs are the same for every class or every image: the model tells nothing apart"
    if out.min() < 0 or out.max() > 1:
        return None
    if ((out == 0) | (out == 1)).all():
        return "outputs are all 0 or 1, decisions rather than logits: return what they were made of"
    if (out.sum(1) - 1).abs().max() < 1e-4:
        return "outputs look like probabilities: remove the softmax"
    return "all outputs lie in [0, 1], as those of a sigmoid do: remove it if there is one"


def _assumed(trial: Trial) -> list[Check]:
    """A warning where the classes were numbered on an assumption."""
    assumed = trial.images.assumed
    return [Check("classes", "warn", assumed)] if assumed else []


def _chance(trial: Trial, shard: Shard) -> list[Check]:
    """A warning where the clean images are right no more often than by guessing."""
    classes = len(trial.images.classes)
    clean = statistics.mean_accuracy((shard.clean == shard.y[:, None]).numpy())
    if classes < 2 or clean.value > 1.0 / classes:
        return []
    text = (
        f"clean accuracy {100 * clean.value:.1f} % is no better than guessing among {classes} "
        f"classes: the labels may not be numbered as the classifier's, or the images not be scaled "
        f"as it expects"
    )
    return [Check("labels", "warn", text)]


def _ball(trial: Trial, shard: Shard) -> Check:
    inside = trial.threat.ball.contains(shard.x_adv, shard.x)
    size = float(trial.threat.ball.size(shard.x_adv - shard.x).max())
    if inside.all():
        return Check("ball", "pass", f"all images stay in the ball; largest size {size:.4f}")
    return Check("ball", "fail", f"{int((~inside).sum())} images leave the ball; size {size:.4f}")


def _finite(shard: Shard) -> Check:
    bad = int((~shard.finite).any(1).sum()) if shard.finite.numel() else 0
    if bad:
        text = f"{bad} images had non-finite gradients and were left in place there"
        return Check("finite", "warn", text)
    return Check("finite", "pass", "every gradient was finite")


def _answers(shard: Shard) -> Check:
    parts, draws = [], shard.clean.shape[1]
    for name, labels in (("unattacked", shard.clean), ("attacked", shard.adversarial)):
        bad = labels == NOBODY
        if bad.any():
            what = f"{int(bad.any(1).sum())} of {len(bad)} {name} images"
            parts.append(f"{what} ({int(bad.sum())} of {bad.numel()} draws)" if draws > 1 else what)
    if parts:
        text = f"logits with NaN or infinity for {' and '.join(parts)}: counted as wrong"
        return Check("answers", "warn", text)
    return Check("answers", "pass", "every answer was finite")


def _vanishing(shard: Shard) -> list[Check]:
    """Whether the attack's loss had a gradient, and any loss had; nothing if none was asked for."""
    if not shard.flat.shape[1]:
        return []
    images = len(shard.y)
    flat, followed = (int((t > 0).any(1).sum()) for t in (shard.flat.byte(), shard.followed))
    found = []
    if followed:
        text = (
            f"the loss lost its gradient to rounding at {followed} of {images} images, which "
            f"followed the gradient of the margin there"
        )
        verdict: Verdict = "warn" if followed > _MARGIN * images else "pass"
        found.append(Check("vanishing loss", verdict, text))
    if flat:
        always = int(shard.flat.all(1).sum())
        text = f"the gradient was zero in every pixel at {flat} of {images} images"
        text += f", throughout the attack at {always}" if always else ""
        cure = ": attack without gradients (Square) before you quote the number"
        verdict = "fail" if 2 * always > images else "warn"
        found.append(Check("zero gradient", verdict, text + cure))
    return found


def _rises(shard: Shard) -> list[Check]:
    if shard.loss.shape[1] < 2:
        return []
    known = shard.loss[:, [0, -1]].isfinite().all(1)
    if not known.any():
        return [Check("loss rises", "warn", "no image has a finite loss at both ends")]
    loss = shard.loss[known]
    first, last = (float(loss[:, i].mean()) for i in (0, -1))
    text = f"the attack's mean loss goes from {first:.3g} to {last:.3g}"
    gain = (loss[:, -1] - loss[:, 0]).double()
    if last > first:
        return [Check("loss rises", "pass", text)]
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
    if float(gain.mean()) + 2.0 * error < 0:
        return [Check("loss rises", "fail", text + ": the attack does not work")]
    return [Check("loss rises", "warn", text + ": too few images and draws to tell")]


def _moving_target(shard: Shard) -> list[Check]:
    """Attack-time and judged accuracy should agree: else the attack over-fits its own draws."""
    if not shard.accuracy.shape[1] or shard.adversarial.shape[1] < 2:
        return []
    seen = float(shard.accuracy[:, -1].mean())
    judged = float((shard.adversarial == shard.y[:, None]).double().mean())
    text = f"accuracy {100 * seen:.1f} % on the attack's draws, {100 * judged:.1f} % on fresh ones"
    far = abs(judged - seen) > max(3 * float(np.sqrt(0.25 / len(shard.y))), 0.1)
    return [Check("fresh draws", "warn" if far else "pass", text)]
