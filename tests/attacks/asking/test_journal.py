"""What is recorded of a defence's answers, and when it is believed; `test_every.py` resumes."""

import hashlib
import itertools
import time
import warnings

import pytest
import torch
from safetensors.torch import save

from depure.attacks import APGD, PGD, Transfer
from depure.attacks.asking import journal as module
from depure.attacks.asking.journal import cached, journal
from depure.data import digits
from depure.defences import Defended
from depure.diffusion import Straight
from depure.evaluation.cost import counted
from depure.noise import Noise
from depure.purifiers import DiffPure
from depure.threat import Linf
from depure.zoo import load_classifier, load_denoiser

CLASSIFIER = load_classifier("digits")
PURIFIER = DiffPure(load_denoiser("digits"), steps=2)
BALL = Linf(0.2)


class Killed(Exception):
    pass


class Counting(Defended):
    """Counts its calls, and the images that it sees."""

    def __init__(self):
        super().__init__(PURIFIER, CLASSIFIER)
        self.calls, self.tally = 0, {"images": 0, "halves": 0.0}

    def forward(self, x, noise):
        self.calls += 1
        self.tally["images"] += len(x)
        self.tally["halves"] += 0.5
        return super().forward(x, noise)


def images(n=3):
    data = digits("test")[slice(0, n)]
    return data.x, data.y


def run(model, path, n=3):
    x, y = images(n)
    with journal(path, model.tally):
        return PGD(3, eot=2)(model, x, y, BALL, Noise.of(0, range(n)))


def test_a_transfer_is_remembered_too(tmp_path):
    """It asks the bare classifier alone."""
    calls = 0

    def hear(module, args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed

    x, y = images()
    ask = (Counting(), x, y, BALL, Noise.of(0, range(3)))
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
    run(Counting(), path)
    plain = run(Counting(), tmp_path / "other", 2)
    other = Counting()
    assert torch.equal(run(other, path, 2), plain)
    assert other.calls > 0
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_the_journal_of_another_run_is_not_believed(tmp_path):
    asked = ("a", Noise.of(0, [0]), (torch.ones(1),))
    for run, answer, found in (("one", 1.0, 1.0), ("one", 2.0, 1.0), ("other", 3.0, 3.0)):
        with journal(tmp_path / "j", run=run):
            assert cached(*asked, lambda answer=answer: (torch.tensor(answer),))[0] == found


@pytest.mark.parametrize("blob", [b"", b"nonsense", save({"x": torch.ones(1)})])
def test_a_record_that_is_whole_but_none_of_ours(blob, tmp_path):
    path = tmp_path / "j"
    path.write_bytes(len(blob).to_bytes(8, "little") + hashlib.sha256(blob).digest() + blob)
    with journal(path):
        assert cached("a", Noise.of(0, [0]), (torch.ones(1),), lambda: (torch.ones(1),))[0] == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "answer", "nonsense", "length", "empty"])
def test_damage_costs_only_what_comes_after_it(harm, tmp_path):
    path = tmp_path / "j"
    expected = run(Counting(), path)
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
    model = Counting()
    assert torch.equal(run(model, path), expected)
    assert path.read_bytes() == good
    assert (model.calls < 3) == (harm in ("cut", "answer"))


def test_a_full_disk_stops_the_journal_and_not_the_attack(tmp_path):
    expected = run(Counting(), tmp_path / "j")
    with pytest.warns(UserWarning, match="journal .* cannot be written"):
        found = run(Counting(), tmp_path / "no folder" / "j")
    assert torch.equal(found, expected)


def test_a_journal_has_a_largest_size(tmp_path, monkeypatch):
    expected = run(Counting(), tmp_path / "j")
    size = (tmp_path / "j").stat().st_size
    monkeypatch.setattr(module, "_LARGEST", size * 2 // 3)
    run(Counting(), tmp_path / "small")
    assert 0 < (tmp_path / "small").stat().st_size <= size * 2 // 3
    again = Counting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(again, tmp_path / "small"), expected)
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
            cached(*known, lambda: (torch.zeros(1),))
        with journal(path):
            assert cached(*known, lambda: (torch.ones(1),))[0].item() == 0
        with journal(path):
            assert cached(*other, lambda: (torch.ones(1),))[0].item() == 1


def test_without_a_journal_nothing_is_kept():
    noise = Noise.of(0, [0])
    assert cached("a", noise, (torch.ones(1),), lambda: (torch.ones(1),))[0].item() == 1


def test_the_name_of_the_loss_and_the_model_are_part_of_the_question(tmp_path):
    x, y = images()
    ask = (x, y, BALL, Noise.of(0, range(3)))
    straight = Defended(PURIFIER.with_backprop(Straight()), CLASSIFIER)
    with journal(tmp_path / "j"):
        PGD(1, eot=1)(straight, *ask)
    for attack, model in ((PGD(1, eot=1, loss="margin"), straight), (PGD(1, eot=1), Counting())):
        expected = attack(model, *ask)
        with journal(tmp_path / "j"):
            assert torch.equal(attack(model, *ask), expected)


def test_what_a_defence_asks_itself_is_not_recorded(tmp_path):
    class Asking(Counting):
        def forward(self, x, noise):
            logits = super().forward(x, noise)
            cached("inner", noise, (x,), lambda: (torch.zeros(1),))
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
    model, x = Counting(), torch.ones(1)

    def slow():
        time.sleep(0.2)
        return (x,)

    for _ in range(2):
        with counted(model) as cost, journal(tmp_path / "j", vars(cost)):
            cached("a", Noise.of(0, [0]), (x,), slow)
        assert cost.seconds >= 0.2
