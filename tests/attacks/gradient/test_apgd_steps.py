"""The moving parts of APGD, by hand."""

import torch

from depure.attacks.asking.gradients import Expected
from depure.attacks.gradient.apgd_steps import APGDState
from depure.threat import Linf


def seen_with(grad, loss, accuracy, finite):
    return Expected(grad, loss, accuracy, finite, torch.zeros_like(accuracy), ~finite)


def test_accuracy_comes_before_loss_and_loss_before_nothing():
    """4 has the lowest accuracy, with no loss to go back to; inf ties and does not win."""
    x = torch.zeros(1, 1, 1, 1)
    state = APGDState(Linf(1.0), x, x)
    seen = [(0.5, 9.0), (0.4, 1.0), (0.4, 2.0), (0.4, 1.5), (0.0, torch.nan), (0.0, torch.inf)]
    seen += [(0.6, 3.0)]
    for number, (accuracy, loss) in enumerate(seen):
        state.point = torch.full_like(x, float(number))
        finite = torch.tensor([number != 0])
        state.note(seen_with(x, torch.tensor([loss]), torch.tensor([accuracy]), finite))
    assert state.proposal.item() == 4.0
    assert state.best.item() == 6.0  # 0 has more loss but no gradient to go back to


def test_momentum_does_not_carry_an_image_whose_gradient_broke():
    x = torch.full((2, 1, 1, 1), 0.5)
    state = APGDState(Linf(0.4), x, x)
    one, good = torch.ones(2), torch.tensor([True, True])
    state.note(seen_with(torch.ones_like(x), one, one, good))
    state.move(x + 0.1)
    state.note(seen_with(torch.zeros_like(x), 2.0 * one, one, torch.tensor([True, False])))
    state.move(x + 0.2)
    torch.testing.assert_close(state.point.flatten(), torch.tensor([0.7, 0.6]))
    state.go_back(torch.tensor([False, True]))  # to its last point with a gradient
    state.move(x + 0.3)
    torch.testing.assert_close(state.point.flatten(), torch.tensor([0.8, 0.8]))
    assert torch.equal(state.previous.flatten(), torch.tensor([0.7, 0.5]))
