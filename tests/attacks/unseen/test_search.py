"""Ascent on the parameters of an image change."""

import torch

from depure.attacks.asking.gradients import Expected
from depure.attacks.unseen.search import Change, variation
from depure.attacks.unseen.stadv import StAdv
from depure.noise import Noise
from depure.threat import Flow

DOUBLE = torch.float64


def test_variation_by_hand():
    f = torch.zeros(1, 2, 2, 2, dtype=DOUBLE)
    f[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(variation(f), torch.tensor([20.0], dtype=DOUBLE), atol=1e-3, rtol=0)


def test_parameters_without_a_finite_gradient_rest_whatever_the_penalty(shaky):
    class Straight(StAdv):
        """Moves pixels themselves, down a penalty alone."""

        def measured(self, case, points, name, *numbers):
            # Each iterate better than the last, one image without a gradient.
            loss = torch.full((2,), float(numbers[0]), dtype=DOUBLE)
            finite = torch.tensor([True, False])
            return Expected(0 * points, loss, 0 * loss, finite, 0 * loss, ~finite)

        def change(self, case):
            return Change("any", lambda p: p, lambda p: p, case.x, 0.1)

        def _penalty(self, params):
            return params.flatten(1).sum(1)

    x = torch.full((2, 1, 4, 4), 0.9, dtype=DOUBLE)
    y, noise = torch.zeros(2, dtype=torch.int64), Noise.of(0, range(2))
    found = Straight(steps=3)(shaky(level=0.0), x, y, Flow(), noise)
    torch.testing.assert_close(found[0], x[0] - 0.3)
    assert torch.equal(found[1], x[1])
