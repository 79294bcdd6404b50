"""What an attack's call checks, and where attacks begin."""

import pytest
import torch
from torch import nn

from depure.attacks import APGD, MIPGD, PGD, Attack, Case, DiffHammer
from depure.defences import Defended
from depure.noise import Noise
from depure.purifiers import Identity
from depure.threat import L2, Flow, Linf

DOUBLE = torch.float64


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(16, 4, generator=g, dtype=DOUBLE))

    def forward(self, x):
        return torch.tanh(x.flatten(1) - 0.5) @ self.w


def pictures():
    g = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(4, 1, 4, 4, generator=g, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])


MODEL = Defended(Identity(), Head())
NOISE = Noise.of(0, range(4))


class To(Attack):
    """Proposes a given offset, and would be heard three times."""

    def __init__(self, offset):
        self.offset = offset

    def trace_length(self, case):
        return 3

    def propose(self, case, watch):
        for _ in range(3):
            watch.iteration(None)
        return case.x + self.offset


@pytest.mark.parametrize("attack", [
    PGD(3, eot=2, start=To(0.02)), APGD(3, eot=2, start=To(0.02)),
    APGD(3, eot=2, restarts=2, start=To(0.02)), MIPGD(3, eot=2, start=To(0.02)),
    DiffHammer(3, eot=2, start=To(0.02)),
])  # fmt: skip
def test_the_walk_begins_there(attack, hear, shaky):
    x, y = pictures()
    asked, heard = [], []

    class Asked(shaky):
        def forward(self, x, noise):
            if x.requires_grad:
                asked.append(x.detach().clone())
            return super().forward(x, noise)

    found = attack(Asked(), x, y, Linf(0.05), NOISE, watch=hear(heard.append))
    torch.testing.assert_close(asked[0][::2], x + 0.02)
    case = Case(MODEL, x, y, Linf(0.05), NOISE)
    assert len(heard) == attack.trace_length(case)  # its own iterations alone
    assert Linf(0.05).contains(found, x).all()


def test_a_start_outside_the_ball_is_brought_into_it():
    x, y = pictures()
    found = PGD(1, eot=1, step_size=1e-9, start=To(9.0))(MODEL, x, y, Linf(0.05), NOISE)
    torch.testing.assert_close(found, (x + 0.05).clamp(max=1.0), atol=1e-6, rtol=0)


def test_only_the_first_run_of_apgd_begins_there():
    x, y = pictures()
    task = APGD(3, restarts=2, loss="dlr", targets=2, start=To(0.01))
    begins = []

    class Heard(Defended):
        def forward(self, x, noise):
            begins.append(x.detach().clone())
            return super().forward(x, noise)

    model = Heard(Identity(), Head())
    task(model, x, y + 0, Linf(0.05), NOISE)
    same = [len(b) == 4 and bool(torch.allclose(b, x + 0.01)) for b in begins]
    assert 1 <= sum(same) <= 2  # once for each target, unless all were broken by the first


def test_a_start_is_checked():
    for kind, settings, words in (
        (PGD, {"start": 3}, "start must be an attack"),
        (APGD, {"start": "score"}, "start must be an attack"),
        (PGD, {"start": To(0), "random_start": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(4, 16)}, r"x must be floating point images .*torch.float32 \(4, 16\)"),
        ({"x": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, "x must be floating point images"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "y must be 4 whole numbers"),
        ({"y": torch.zeros(4)}, "y must be 4 whole numbers, .*torch.float32"),
        ({"noise": NOISE[:3]}, "noise must have 4 rows, one per image; got 3"),
        ({"ball": Flow(0.1)}, "To attacks in Linf, L2, L1 only; got Flow.*StAdv"),
        ({"ball": L2(5.0)}, "eps must be at most 4, the largest L2 change"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_attack(change, words):
    x, y = pictures()
    call = {"model": MODEL, "x": x, "y": y, "ball": Linf(0.1), "noise": NOISE, **change}
    with pytest.raises(ValueError, match=words):
        To(0.0)(**call)


def test_without_a_watch_nobody_hears():
    x, y = pictures()
    assert torch.equal(To(0.0)(MODEL, x, y, Linf(0.1), NOISE), x)
    with pytest.raises(TypeError):
        To(0.0)(MODEL, x, y, Linf(0.1), NOISE, print)  # a watch is named
    with pytest.raises(ValueError, match=r"watch must be a Watch, .* got <built-in function"):
        To(0.0)(MODEL, x, y, Linf(0.1), NOISE, watch=print)
