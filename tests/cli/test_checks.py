"""Quick looks at a training report a wrong gradient and go on."""

import torch
from torch import Tensor, nn

from depure.cli.checks import classifier_measure
from depure.data import digits


class Detached(nn.Module):
    """A classifier (B, 1, 8, 8) -> (B, 10), half of whose gradient is missing."""

    def __init__(self, share: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.share = nn.Linear(64, 10), share

    def forward(self, x: Tensor) -> Tensor:
        x = self.share * x.detach() + (1 - self.share) * x
        return self.head(torch.tanh(x.flatten(1)))


def test_a_wrong_gradient_is_reported_and_stops_nothing():
    held = digits("test")[slice(0, 4)]
    assert classifier_measure(Detached(0.5), held, 0.1)["gradient_check"] == 0
    assert classifier_measure(Detached(0.0), held, 0.1)["gradient_check"] == 1
