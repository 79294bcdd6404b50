"""What climbing attacks share, against torch's."""

import torch

from depure.attacks.ascent import Adam, Best
from depure.attacks.asking.gradients import Expected

DOUBLE = torch.float64


def test_adam_is_torchs():
    g = torch.Generator().manual_seed(0)
    a = torch.zeros(2, 3, dtype=DOUBLE)
    b = a.clone().requires_grad_()
    theirs, ours = torch.optim.Adam([b], lr=0.1, maximize=True), Adam.like(a)
    for _ in range(5):
        b.grad = torch.randn(2, 3, generator=g, dtype=DOUBLE)
        ours = ours.updated(b.grad, torch.tensor([True, True]))
        a = a + 0.1 * ours.step()
        theirs.step()
    torch.testing.assert_close(a, b.detach())


def test_the_best_so_far_is_kept_with_what_was_measured_of_it():
    """Of the second only image 0 is better; of the third image 1 is, but it is not allowed."""
    x = torch.zeros(2, 1, 1, 1)

    def seen(*losses: float) -> Expected:
        loss, yes = torch.tensor(losses), torch.ones(2, dtype=torch.bool)
        return Expected(x + loss.view(-1, 1, 1, 1), loss, torch.ones(2), yes, 0.0 * loss, ~yes)

    best = Best(x, seen(1.0, 1.0)).or_better(x + 1.0, seen(2.0, 0.5))
    best = best.or_better(x + 2.0, seen(0.0, 3.0), allowed=torch.tensor([True, False]))
    assert best.x.flatten().tolist() == [1.0, 0.0]
    assert best.seen.loss.tolist() == best.seen.grad.flatten().tolist() == [2.0, 1.0]


def test_adam_learns_in_its_rows_alone():
    adam, grad = Adam.like(torch.zeros(2, 3)), torch.ones(2, 3)
    assert not adam.step().any()
    adam = adam.updated(grad, torch.tensor([True, False]))
    torch.testing.assert_close(adam.step(), torch.tensor([[1.0], [0.0]]).expand(2, 3))
    later = adam.updated(-grad, torch.tensor([False, True]))
    torch.testing.assert_close(later.step()[0], adam.step()[0])
    torch.testing.assert_close(later.step()[1], -torch.ones(3))
