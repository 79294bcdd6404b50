"""A killed attack, run again with its journal, goes on inside its images: any attack."""

import hashlib
import itertools
import time
import warnings

import pytest
import torch
from safetensors.torch import save

from depure.attacks import (
    APGD,
    FAB,
    LPA,
    MIPGD,
    PGD,
    PPGD,
    SPSA,
    DiffAttack,
    DiffHammer,
    Ensemble,
    FeatureDistance,
    FullIntermediate,
    LowFrequency,
    Perceptual,
    RayS,
    ReColorAdv,
    ScoreStart,
    Square,
    StAdv,
    StandIn,
    Transfer,
    autoattack,
    strongest,
)
from depure.attacks import journal as module
from depure.attacks.journal import journal, recalled
from depure.data import digits
from depure.defences import Defended
from depure.diffusion import Straight
from depure.evaluation.cost import counted
from depure.noise import Noise
from depure.purifiers import BPDA, DiffPure
from depure.threat import L1, L2, Flow, Linf
from depure.zoo import load_classifier, load_denoiser

CLASSIFIER = load_classifier("digits")
PURIFIER = DiffPure(load_denoiser("digits"), steps=2)
BALL = Linf(0.2)
SCORED = (PURIFIER.denoiser, PURIFIER.grid)
FEATURES = Perceptual(FeatureDistance(CLASSIFIER), 0.5)

ATTACKS = {
    "PGD": (PGD(3, eot=2), BALL),
    "PGD from a score": (PGD(3, eot=2, start=ScoreStart.of(*SCORED)), BALL),
    "APGD from PGD": (APGD(3, eot=2, start=PGD(2, eot=2)), BALL),
    "PGD to a target": (PGD(3, eot=2, target="runner_up", average="logits"), BALL),
    "MI-PGD": (MIPGD(3, eot=2), BALL),
    "APGD": (APGD(5, eot=2, restarts=2), BALL),
    "APGD L1": (APGD(10, eot=2, shrinking=True), L1(3.0)),
    "APGD-T": (APGD(3, eot=2, loss="dlr", targets=2), L2(1.0)),
    "FAB": (FAB(steps=3, targets=2, eot=2), BALL),
    "DiffAttack": (DiffAttack(PGD(3, eot=2)), BALL),
    "full-intermediate": (FullIntermediate(PGD(3, eot=2)), BALL),
    "DiffHammer": (DiffHammer(3, eot=2), BALL),
    "BPDA": (StandIn(PGD(3, eot=2), Defended(BPDA(PURIFIER), CLASSIFIER), judge_draws=3), BALL),
    "Square": (Square(steps=5, eot=2), BALL),
    "RayS": (RayS(steps=6, eot=2), BALL),
    "SPSA": (SPSA(steps=3, samples=2), BALL),
    "StAdv": (StAdv(3, eot=2), Flow(0.05)),
    "ReColorAdv": (ReColorAdv(3, eot=2), BALL),
    "LF": (LowFrequency(3, eot=2, kernels=(5, 3)), BALL),
    "PPGD": (PPGD(3, eot=2, conjugate=2), FEATURES),
    "LPA": (LPA(2, rounds=2, eot=2), FEATURES),
    "cascade": (autoattack("stochastic", BALL, steps=5, queries=3, eot=2), BALL),
    "fixed": (autoattack("fixed", BALL, steps=5, queries=3, eot=2), BALL),
    "strongest": (strongest(200, BALL, CLASSIFIER), BALL),
    "ensemble": (Ensemble((PGD(2, eot=2), APGD(5, eot=2)), judge_draws=3), BALL),
}


class Killed(Exception):
    pass


class Mortal(Defended):
    """Dies at a call of the classifier; counts the images that it sees until then."""

    def __init__(self, dies_at=None):
        super().__init__(PURIFIER, CLASSIFIER)
        self.dies_at, self.calls, self.tally = dies_at, 0, {"images": 0, "halves": 0.0}

    def _hear(self, images):
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        self.tally["images"] += images
        self.tally["halves"] += 0.5

    def forward(self, x, noise):
        self._hear(len(x))
        return super().forward(x, noise)

    def trace(self, x, noise):
        self._hear(len(x))
        return super().trace(x, noise)


def images(n=3):
    data = digits("test")[slice(0, n)]
    return data.x, data.y


def run(name, model, path, n=3):
    attack, ball = ATTACKS[name]
    x, y = images(n)
    heard = []
    with journal(path, model.tally):
        found = attack(
            model, x, y, ball, Noise.of(0, range(n)), lambda i, seen: heard.append((i, seen.loss))
        )
    return found, heard


@pytest.mark.parametrize("name", ATTACKS)
def test_goes_on_where_it_was(name, tmp_path):
    whole = Mortal()
    expected, heard = run(name, whole, tmp_path / "whole")
    for dies_at in {0, whole.calls // 2, whole.calls - 1}:
        path = tmp_path / f"at {dies_at}"
        dying, second = Mortal(dies_at), Mortal()
        with pytest.raises(Killed):
            run(name, dying, path)
        again, heard_again = run(name, second, path)
        assert torch.equal(again, expected)
        assert [i for i, _ in heard_again] == [i for i, _ in heard]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(heard, heard_again, strict=True))
        # It pays again at most for the answer that it died in.
        assert second.tally == whole.tally
        assert dying.calls + second.calls <= whole.calls + 1
        last = Mortal()
        assert torch.equal(run(name, last, path)[0], expected)
        assert last.calls == 0
        assert last.tally == whole.tally


def test_a_transfer_is_remembered_too(tmp_path):
    """It asks the bare classifier alone."""
    calls = 0

    def hear(module, args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed

    x, y = images()
    ask = (Mortal(), x, y, BALL, Noise.of(0, range(3)))
    attack = Transfer(APGD(8), CLASSIFIER)
    expected = attack(*ask)
    handle = CLASSIFIER.register_forward_pre_hook(hear)
    try:
        with pytest.raises(Killed), journal(tmp_path / "j"):
            attack(*ask)
        with journal(tmp_path / "j"):
            assert torch.equal(attack(*ask), expected)
        whole = calls - 1
        with journal(tmp_path / "j"):
            attack(*ask)
    finally:
        handle.remove()
    assert calls - 1 == whole == 11  # the start, 8 steps, and two judged


def test_another_question_is_answered_afresh(tmp_path):
    path = tmp_path / "j"
    run("PGD", Mortal(), path)
    plain = run("PGD", Mortal(), tmp_path / "other", 2)[0]
    other = Mortal()
    assert torch.equal(run("PGD", other, path, 2)[0], plain)
    assert other.calls > 0
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_the_journal_of_another_run_is_not_believed(tmp_path):
    asked = ("a", Noise.of(0, [0]), (torch.ones(1),))
    for run, answer, found in (("one", 1.0, 1.0), ("one", 2.0, 1.0), ("other", 3.0, 3.0)):
        with journal(tmp_path / "j", run=run):
            assert recalled(*asked, lambda answer=answer: (torch.tensor(answer),))[0] == found


@pytest.mark.parametrize("blob", [b"", b"nonsense", save({"x": torch.ones(1)})])
def test_a_record_that_is_whole_but_none_of_ours(blob, tmp_path):
    path = tmp_path / "j"
    path.write_bytes(len(blob).to_bytes(8, "little") + hashlib.sha256(blob).digest() + blob)
    with journal(path):
        assert recalled("a", Noise.of(0, [0]), (torch.ones(1),), lambda: (torch.ones(1),))[0] == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "answer", "nonsense", "length", "empty"])
def test_damage_costs_only_what_comes_after_it(harm, tmp_path):
    path = tmp_path / "j"
    expected = run("PGD", Mortal(), path)[0]
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes({
        "cut": good[:middle],
        "flip": good[:60] + b"\xff\xff" + good[62:],
        "answer": good[:-4] + bytes(4),  # the last gradient, but for its end
        "nonsense": b"nonsense" * 100,
        "length": b"\xff" * 8 + good[8:],
        "empty": b"",
    }[harm])  # fmt: skip
    model = Mortal()
    assert torch.equal(run("PGD", model, path)[0], expected)
    assert path.read_bytes() == good
    assert (model.calls < 3) == (harm in ("cut", "answer"))


def test_a_full_disk_stops_the_journal_and_not_the_attack(tmp_path):
    expected = run("PGD", Mortal(), tmp_path / "j")[0]
    with pytest.warns(UserWarning, match="journal .* cannot be written"):
        found = run("PGD", Mortal(), tmp_path / "no folder" / "j")[0]
    assert torch.equal(found, expected)


def test_a_journal_has_a_largest_size(tmp_path, monkeypatch):
    expected = run("PGD", Mortal(), tmp_path / "j")[0]
    size = (tmp_path / "j").stat().st_size
    monkeypatch.setattr(module, "_LARGEST", size * 2 // 3)
    run("PGD", Mortal(), tmp_path / "small")
    assert 0 < (tmp_path / "small").stat().st_size <= size * 2 // 3
    again = Mortal()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run("PGD", again, tmp_path / "small")[0], expected)
    assert 0 < again.calls < 3


def test_the_kind_of_a_question_and_dtypes_and_shapes_tell_questions_apart(tmp_path):
    one, noise = torch.ones(4), Noise.of(0, range(2))
    asked = [
        ("a", noise, (one,)),
        ("b", noise, (one,)),
        ("b", noise.fold("x"), (one,)),
        ("b", noise.fold("x").lock("forward"), (one,)),
        ("b", noise.lock("forward").fold("x"), (one,)),
        ("b", noise.pool(2, "forward").fold("x"), (one,)),
        ("b", noise.mix(0.5, "forward").fold("x"), (one,)),
        ("b", noise, (one.double(),)),
        ("b", noise, (one.view(2, 2),)),
        ("b", noise, (one, one)),
    ]
    for known, other in itertools.pairwise(asked):
        path = tmp_path / "j"
        path.unlink(missing_ok=True)
        with journal(path):
            recalled(*known, lambda: (torch.zeros(1),))
        with journal(path):
            assert recalled(*known, lambda: (torch.ones(1),))[0].item() == 0
        with journal(path):
            assert recalled(*other, lambda: (torch.ones(1),))[0].item() == 1


def test_without_a_journal_nothing_is_kept():
    noise = Noise.of(0, [0])
    assert recalled("a", noise, (torch.ones(1),), lambda: (torch.ones(1),))[0].item() == 1


def test_the_name_of_the_loss_and_the_model_are_part_of_the_question(tmp_path):
    x, y = images()
    ask = (x, y, BALL, Noise.of(0, range(3)))
    straight = Defended(PURIFIER.with_backprop(Straight()), CLASSIFIER)
    with journal(tmp_path / "j"):
        PGD(1, eot=1)(straight, *ask)
    for attack, model in ((PGD(1, eot=1, loss="margin"), straight), (PGD(1, eot=1), Mortal())):
        expected = attack(model, *ask)
        with journal(tmp_path / "j"):
            assert torch.equal(attack(model, *ask), expected)


def test_what_a_defence_asks_itself_is_not_recorded(tmp_path):
    class Asking(Mortal):
        def forward(self, x, noise):
            logits = super().forward(x, noise)
            recalled("inner", noise, (x,), lambda: (torch.zeros(1),))
            return logits

    x, y = images()
    ask = (x, y, BALL, Noise.of(0, range(3)))
    model, again = Asking(), Asking()
    with journal(tmp_path / "j"):
        expected = PGD(2, eot=1)(model, *ask)
    with journal(tmp_path / "j"):
        assert torch.equal(PGD(2, eot=1)(again, *ask), expected)
    assert again.calls == 0


def test_seconds_are_those_that_the_answers_took(tmp_path):
    model, x = Mortal(), torch.ones(1)

    def slow():
        time.sleep(0.2)
        return (x,)

    for _ in range(2):
        with counted(model) as cost, journal(tmp_path / "j", vars(cost)):
            recalled("a", Noise.of(0, [0]), (x,), slow)
        assert cost.seconds >= 0.2
