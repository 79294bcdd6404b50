"""What every attack must do: a table of attacks, and the properties that all of them have."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import depure.attacks
from depure.attacks import (
    APGD,
    FAB,
    LPA,
    MIPGD,
    PGD,
    PPGD,
    SPSA,
    Attack,
    Case,
    DiffAttack,
    DiffHammer,
    Ensemble,
    Expected,
    FullIntermediate,
    LowFrequency,
    RayS,
    ReColorAdv,
    ScoreStart,
    Square,
    StAdv,
    SubstituteAttack,
    Transfer,
    autoattack,
    strongest,
)
from depure.attacks.asking.journal import journal
from depure.diffusion import Denoiser, VPDiscrete
from depure.evaluation.record import settings_of
from depure.networks.features.distance import FeatureDistance
from depure.noise import Noise
from depure.rows import Chunk, chunked
from depure.threat import L1, L2, Ball, Flow, Linf, Perceptual
from depure.types import Trace, Waypoint

DOUBLE = torch.float64
EDGE = 0.9  # first pixels above it make a model break


class Head(nn.Module):
    """Five smooth classes."""

    def __init__(self, scale: float = 3.0, seed: int = 5) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.scale, self.w = scale, nn.Parameter(torch.randn(16, 5, generator=g, dtype=DOUBLE))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(2.0 * (x - 0.5).flatten(1)) @ self.w.to(x)


class Killed(Exception):
    pass


class Toy(nn.Module):
    """A purifier of one noisy step before a classifier; it counts, and dies when told to.

    Where the first pixel of an image is above `EDGE`, its "gradient" or its "logits" are NaN.
    """

    def __init__(
        self, level: float = 0.05, scale: float = 3.0, broken: str = "", dies_at: int | None = None
    ) -> None:
        super().__init__()
        self.stages = ("forward",) if level else ()
        self.classifier = Head(scale)
        self.level, self.broken, self.dies_at = level, broken, dies_at
        self.calls, self.largest, self.tally = 0, 0, {"images": 0, "halves": 0.0}

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        return self.trace(x, noise).logits

    def trace(self, x: Tensor, noise: Noise) -> Trace:
        self._count(len(x))
        bad = x.detach()[:, :1, :1, :1] > EDGE
        x = x * 1.0
        if x.requires_grad and self.broken == "gradient":
            x.register_hook(lambda g: torch.where(bad, torch.nan, g))
        noised = x + self.level * noise.normal("forward", 0, x) if self.level else x
        first, last = 0.95 * noised + 0.02, 0.9 * noised + 0.05
        logits = self.classifier(last)
        if self.broken == "logits":
            logits = torch.where(bad[:, 0, 0], torch.nan, logits)
        return Trace(logits, (Waypoint(0, 1, 49.0, first, noised), Waypoint(0, 0, -1.0, last, x)))

    def _count(self, rows: int) -> None:
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        self.largest = max(self.largest, rows)
        self.tally["images"] += rows
        self.tally["halves"] += 0.5


class Shrunk(nn.Module):
    """Half of every pixel: a diffusion model."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * x


def features() -> FeatureDistance:
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5
    return FeatureDistance(net.double().eval())


class Row(NamedTuple):
    """An attack, the ball that it is tried in, and whether an image without a gradient stays."""

    attack: Attack
    ball: Ball = Linf(0.1)
    stays: bool = True


SCORE = ScoreStart(Denoiser(Shrunk(), VPDiscrete.linear(), "x0"), 0.9, 0.19**0.5, 100, draws=2)
NEAR = Perceptual(features(), 0.1)
BATTERY = {"ball": Linf(0.1), "steps": 5, "queries": 3, "eot": 2, "classes": 4}

EVERY = {
    "PGD": Row(PGD(3, eot=2)),
    "PGD L2": Row(PGD(3, eot=2, loss="dlr"), L2(0.4)),
    "PGD L1": Row(PGD(3, eot=2, loss="margin"), L1(1.0)),
    "PGD random": Row(PGD(3, eot=2, random_start=True), stays=False),
    "PGD from a score": Row(PGD(3, eot=2, start=SCORE), stays=False),
    "PGD to a target": Row(PGD(3, eot=2, target="runner_up", average="logits")),
    "MI-PGD": Row(MIPGD(3, eot=2)),
    "DiffHammer": Row(DiffHammer(3, eot=2)),
    "APGD": Row(APGD(5, eot=2, random_start=False)),
    "APGD restarts": Row(
        APGD(5, eot=2, restarts=2, loss="margin", average="logits"), L2(0.4), stays=False
    ),
    "APGD from PGD": Row(APGD(3, eot=2, start=PGD(2, eot=2))),
    "APGD-T": Row(APGD(3, eot=2, loss="dlr", targets=2, random_start=False), L2(0.4)),
    "APGD L1": Row(APGD(10, eot=2, shrinking=True, random_start=False), L1(1.0)),
    "FAB": Row(FAB(steps=2, targets=2, eot=2)),
    "FAB L2": Row(FAB(steps=2, targets=1, eot=2, restarts=2), L2(0.4)),
    "FAB L1": Row(FAB(steps=2, targets=2, eot=2), L1(1.0)),
    "Square": Row(Square(steps=5, eot=2), stays=False),
    "Square L2": Row(Square(steps=5, eot=2), L2(0.4), stays=False),
    "RayS": Row(RayS(steps=25, eot=2), stays=False),
    "SPSA": Row(SPSA(steps=3, samples=3), stays=False),
    "SPSA L2": Row(SPSA(steps=3, samples=3, eot=2), L2(0.4), stays=False),
    "StAdv": Row(StAdv(3, eot=2), Flow(0.3)),
    "ReColorAdv": Row(ReColorAdv(3, eot=2, resolution=4)),
    "StAdv random": Row(StAdv(3, eot=2, random_start=True), Flow(0.3), stays=False),
    "ReColorAdv random": Row(ReColorAdv(3, eot=2, resolution=4, random_start=True), stays=False),
    "LF": Row(LowFrequency(3, eot=2, kernels=(3, 5), lr=0.05)),
    "LF perceptual": Row(LowFrequency(3, eot=2, kernels=(3,), lr=0.05), NEAR),
    "PPGD": Row(PPGD(3, eot=2, conjugate=2, random_start=False), NEAR),
    "PPGD random": Row(PPGD(3, eot=2, conjugate=2), NEAR, stays=False),
    "LPA": Row(LPA(2, rounds=2, eot=2, random_start=False), NEAR),
    "DiffAttack": Row(DiffAttack(PGD(3, eot=2))),
    "full-intermediate": Row(FullIntermediate(APGD(3, eot=2, random_start=False))),
    "substitute": Row(SubstituteAttack(PGD(3, eot=2), Toy(0.02), judge_draws=3), stays=False),
    "transfer": Row(Transfer(PGD(3, eot=2), Head(seed=6).eval()), stays=False),
    "score": Row(SCORE, stays=False),
    "ensemble": Row(Ensemble((PGD(2, eot=2), MIPGD(3, eot=2)), judge_draws=3)),
    "standard": Row(autoattack("standard", **BATTERY), stays=False),
    "rand": Row(autoattack("rand", **BATTERY), stays=False),
    "stochastic": Row(autoattack("stochastic", **BATTERY), stays=False),
    "fixed": Row(autoattack("fixed", **BATTERY), stays=False),
    "strongest": Row(strongest(120, Linf(0.1), Head(seed=6).eval(), classes=5), stays=False),
}

every = pytest.mark.parametrize("name", EVERY)
Hear = Callable[[Callable[[Expected], object]], depure.attacks.Watch]


def problem(model: Toy, ball: Ball, known: bool = False, n: int = 5) -> Case:
    """Images with the labels that the model gives them, but for the first, which is wrong."""
    g = torch.Generator().manual_seed(3)
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=g, dtype=DOUBLE)
    ranked = model.classifier(0.9 * x + 0.05).argsort(1, descending=True)
    y = ranked[:, 0].clone()
    y[0] = ranked[0, 1]
    noise = Noise.of(8, range(n))
    return Case(model, x, y, ball, noise.lock("forward") if known else noise)


def attacked(attack: Attack, case: Case, watch: depure.attacks.Watch | None = None) -> Tensor:
    return attack(case.model, case.x, case.y, case.ball, case.noise, watch=watch)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9)


def concrete(kind: type[Attack]) -> Iterator[type[Attack]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("depure.attacks.") and not inspect.isabstract(child):
            yield child
        yield from concrete(child)


def test_every_attack_has_a_row() -> None:
    for module in pkgutil.walk_packages(depure.attacks.__path__, "depure.attacks."):
        importlib.import_module(module.name)
    kinds = {kind for kind in concrete(Attack) if not kind.__name__.startswith("_")}
    assert kinds == {type(row.attack) for row in EVERY.values()}
    assert {kind.__name__ for kind in kinds} <= set(depure.attacks.__all__)


@every
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_stays_in_the_ball(name: str, dtype: torch.dtype) -> None:
    """And in [0, 1], also from black and white; it moves, and keeps the dtype."""
    attack, ball, _ = EVERY[name]
    if isinstance(ball, Perceptual):
        ball = Perceptual(features().to(dtype), ball.eps)
    case = problem(Toy().to(dtype), ball)
    x = case.x.to(dtype)
    x[1, :, 1:3], x[2, :, 1:3] = 0.0, 1.0
    case = dataclasses.replace(case, x=x)
    found = attacked(attack, case)
    assert found.dtype == dtype
    assert found.shape == case.x.shape
    assert ball.contains(found, case.x).all()
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert not torch.equal(found, case.x)


@every
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_other_images_change_nothing(name: str, known: bool) -> None:
    attack, ball, _ = EVERY[name]
    case = problem(Toy(), ball, known)
    whole = attacked(attack, case)
    for rows in ([3], [4, 1, 0], [2, 3, 3]):
        close(attacked(attack, case.rows(torch.tensor(rows))), whole[rows])


@every
def test_the_rows_at_once_change_nothing(name: str) -> None:
    attack, ball, _ = EVERY[name]
    whole = attacked(attack, problem(Toy(), ball))
    model = Toy()
    with chunked(Chunk(3)):
        close(attacked(attack, problem(model, ball)), whole)
    assert model.largest <= 3


@every
def test_goes_on_where_it_was(name: str, tmp_path: Path, hear: Hear) -> None:
    """Killed at the first, a middle and the last answer, it is repeated from its journal."""
    attack, ball, _ = EVERY[name]

    def run(path: Path, model: Toy) -> tuple[Tensor, list[Expected]]:
        heard: list[Expected] = []
        with journal(path, model.tally):
            return attacked(attack, problem(model, ball, n=3), hear(heard.append)), heard

    whole = Toy()
    expected, heard = run(tmp_path / "whole", whole)
    for dies_at in {0, whole.calls // 2, whole.calls - 1} & set(range(whole.calls)):
        path = tmp_path / f"at {dies_at}"
        dying, second, last = Toy(dies_at=dies_at), Toy(), Toy()
        with pytest.raises(Killed):
            run(path, dying)
        again, heard_again = run(path, second)
        assert torch.equal(again, expected)
        assert all(torch.equal(a.loss, b.loss) for a, b in zip(heard, heard_again, strict=True))
        # It pays again at most for the answer that it died in.
        assert second.tally == whole.tally
        assert dying.calls + second.calls <= whole.calls + 1
        assert torch.equal(run(path, last)[0], expected)
        assert last.calls == 0
        assert last.tally == whole.tally


def with_draws(thing: object, draws: int) -> object:
    """The same attack with other numbers of the defence's draws."""
    if isinstance(thing, tuple):
        return tuple(with_draws(part, draws) for part in thing)
    if not isinstance(thing, Attack):
        return thing
    fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}  # type: ignore[arg-type]
    new = {
        name: draws if name in ("eot", "judge_draws", "evals") else with_draws(value, draws)
        for name, value in fields.items()
    }
    return dataclasses.replace(thing, **new)  # type: ignore[type-var]


@every
def test_known_noise_is_one_draw_and_repeats_to_the_bit(name: str) -> None:
    attack, ball, _ = EVERY[name]
    model, again, more = Toy(), Toy(), Toy()
    found = attacked(attack, problem(model, ball, known=True))
    assert torch.equal(attacked(attack, problem(again, ball, known=True)), found)
    many = with_draws(attack, 7)
    assert isinstance(many, Attack)
    assert torch.equal(attacked(many, problem(more, ball, known=True)), found)
    assert more.tally == model.tally


@every
@pytest.mark.parametrize("broken", ["gradient", "logits"])
def test_an_image_without_a_finite_gradient(name: str, broken: str) -> None:
    """It stays in place, unless the attack does without; the others do not notice."""
    attack, ball, stays = EVERY[name]
    case = problem(Toy(broken=broken), ball)
    case.x[2, 0, 0, 0] = 0.95
    found = attacked(attack, case)
    assert ball.contains(found, case.x).all()
    if stays:
        # LowFrequency's filters blur a little from the start.
        torch.testing.assert_close(found[2], case.x[2], rtol=0.0, atol=1e-4)
    rest = [0, 1, 3, 4]
    close(found[rest], attacked(attack, case.rows(torch.tensor(rest))))


@every
def test_a_sure_classifier_does_not_stop_it(name: str) -> None:
    """Margins of thousands: the cross-entropy's gradient is zero."""
    attack, ball, _ = EVERY[name]
    case = problem(Toy(level=0.001, scale=3e3), ball)
    found = attacked(attack, case)
    assert ball.contains(found, case.x).all()
    if attack.needs_gradient:
        assert (found != case.x).flatten(1).any(1)[1:].all()


@every
def test_an_image_that_is_wrong_already_stays_wrong(name: str) -> None:
    attack, ball, _ = EVERY[name]
    case = problem(Toy(), ball, known=True)
    for x in (case.x, attacked(attack, case)):
        assert case.model(x, case.noise)[0].argmax() != case.y[0]


@every
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_the_trace_is_as_long_as_it_says(name: str, known: bool, hear: Hear) -> None:
    attack, ball, _ = EVERY[name]
    case, heard = problem(Toy(), ball, known), []
    attacked(attack, case, hear(heard.append))
    assert len(heard) == attack.trace_length(case)
    for measured in heard:
        assert measured.grad.shape == case.x.shape
        assert {len(v) for v in measured} == {len(case.x)}
        assert ((measured.accuracy >= 0.0) & (measured.accuracy <= 1.0)).all()


class Ring(Ball):
    """A ball that no attack is made for."""

    eps = 0.1
    contains = project = size = None  # type: ignore[assignment]


@every
def test_another_ball_is_refused_by_name(name: str) -> None:
    attack, ball, _ = EVERY[name]
    assert isinstance(ball, attack.balls)
    words = rf"^{type(attack).__name__} attacks in .+ only; got .*Ring"
    with pytest.raises(ValueError, match=words):
        attacked(attack, problem(Toy(), Ring()))  # type: ignore[abstract]


def rebuilt(record: object, like: object) -> object:
    """What a record says; networks, which a record only fingerprints, are those of `like`."""
    if isinstance(record, list) and isinstance(like, tuple):
        return tuple(rebuilt(r, part) for r, part in zip(record, like, strict=True))
    if not (isinstance(record, dict) and isinstance(like, Attack)):
        return like if isinstance(like, nn.Module) else record
    kind = getattr(depure.attacks, record["name"])
    settings = {k: rebuilt(v, getattr(like, k)) for k, v in record.items() if k != "name"}
    return kind(**settings)


@every
def test_the_record_has_every_setting(name: str) -> None:
    attack = EVERY[name].attack
    record = json.loads(json.dumps(settings_of(attack)))
    assert rebuilt(record, attack) == attack
