"""Parts of the training loop."""

import pytest
import torch

from depure.data import digits
from depure.training import accuracy
from depure.training.loop import warm_cosine


def test_learning_rate_climbs_and_falls():
    for total in (1, 2, 7, 100):
        rates = [warm_cosine(step, total) for step in range(total)]
        assert all(0 < rate <= 1 for rate in rates)
        assert max(rates) == 1.0
    assert [warm_cosine(step, 100) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert warm_cosine(55, 100) == pytest.approx(0.5)


def test_accuracy_counts_the_partial_batch_and_refuses_no_images():
    images = digits("train").sample(50)
    right = images[images.y != 3]

    def lookup(x):
        matches = (x[:, None] == images.x[None]).flatten(2).all(2)
        return images.y[matches.int().argmax(1)]

    def all_but_threes(x):
        logits = torch.eye(10)[lookup(x)]
        logits[lookup(x) == 3] = torch.eye(10)[4]
        return logits

    assert accuracy(all_but_threes, images, batch_size=20) == len(right) / 50 == 0.9
    with pytest.raises(ValueError, match="images must be above 0"):
        accuracy(all_but_threes, images[:0])
