"""What an attack may ask about a case, and which of two proposals is better."""

from __future__ import annotations

import pytest
import torch

from depure.attacks import LOSSES, Case, expected_grad
from depure.attacks.asking.gradients import sampled_logits
from depure.attacks.asking.queries import query_margins
from depure.attacks.case import is_better
from depure.noise import Noise
from depure.threat import Flow, Linf

DOUBLE = torch.float64
X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
Y = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def case(shaky):
    return Case(shaky(), X, Y, Linf(0.1), Noise.of(3, range(4)))


def test_its_questions_are_those_of_the_functions(case):
    """Under the noise that the key names; the empty key is the case's own."""
    for key, noise in (((), case.noise), (("a", 2), case.noise.fold("a", 2))):
        found = case.gradient(X, "ce", 3, key)
        expected = expected_grad(case.model, X, Y, LOSSES["ce"], noise, 3)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        points = torch.stack([X, 1.0 - X], 1)
        asked = zip(
            case.margins(points, 3, key),
            query_margins(case.model, points, Y, noise, 3),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in asked)
        assert torch.equal(case.logits(X, 3, key), sampled_logits(case.model, X, noise, 3))


def test_an_aim_replaces_the_labels_in_the_loss_alone(case):
    aim = (Y + 1) % 3
    found, plain = case.gradient(X, "margin", 3, aim=aim), case.gradient(X, "margin", 3)
    other = Case(case.model, X, aim, case.ball, case.noise).gradient(X, "margin", 3)
    assert torch.equal(found.grad, other.grad)
    assert torch.equal(found.accuracy, plain.accuracy)
    assert not torch.equal(found.grad, plain.grad)


def test_some_rows_are_the_images_alone(case):
    mask = torch.tensor([False, True, False, True])
    for rows in (mask, torch.tensor([1, 3])):
        part = case.rows(rows)
        assert torch.equal(part.y, Y[[1, 3]])
        torch.testing.assert_close(part.logits(part.x, 3), case.logits(X, 3)[[1, 3]])


def test_repeated_rows_are_the_draws_of_a_question(case):
    rows = case.repeated(3, ("a",))
    alone = rows.logits(rows.x, 1).view(4, 3, 3)
    torch.testing.assert_close(alone, case.logits(X, 3, ("a",)))


def test_another_model_and_noise_of_its_own(case, shaky):
    plain = shaky(0)
    assert case.random
    assert case.draws(7) == 7
    assert not case.on(plain).random
    assert case.on(plain, case.noise.lock("a")).draws(7) == 1
    folded = case.fold("b", 1).logits(X, 2)
    assert torch.equal(folded, case.logits(X, 2, ("b", 1)))


def test_a_norm_is_asked_for_by_name(case):
    assert case.norm == Linf(0.1)
    with pytest.raises(ValueError, match="in the balls Linf, L2 and L1; got Flow"):
        _ = Case(case.model, X, Y, Flow(), case.noise).norm


def test_the_better_of_two_on_common_draws(case):
    """Lower accuracy, then a larger margin, image by image."""
    new = 1.0 - X
    answer = case.margins(torch.stack([X, new], 1), 5, ("a",))
    kept = case.keep_better(X, new, 5, ("a",))
    for i in range(4):
        old, fresh = ((answer.accuracy[i, n].item(), -answer.margin[i, n].item()) for n in range(2))
        assert torch.equal(kept[i], new[i] if fresh < old else X[i])
    assert len({torch.equal(a, b) for a, b in zip(kept, X, strict=True)}) == 2


def test_where_nothing_is_random_the_best_is_the_best(case, shaky):
    last = 1.0 - X
    known = Case(shaky(0), X, Y, case.ball, case.noise)
    assert torch.equal(known.fresh(X, last, 3), X)
    expected = case.keep_better(X, last, 20, ("settle",))
    assert torch.equal(case.fresh(X, last, 3), expected)


NAN, INF = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("new", "old", "wins"),
    [
        ((0.4, 0.0), (0.5, 9.0), True),
        ((0.5, 9.0), (0.4, 0.0), False),
        ((0.5, 2.0), (0.5, 1.0), True),
        ((0.5, 1.0), (0.5, 1.0), False),
        ((0.5, NAN), (0.5, 1.0), False),
        ((0.5, INF), (0.5, 1.0), False),
        ((0.5, 1.0), (0.5, NAN), True),
        ((0.4, NAN), (0.5, 1.0), True),
    ],
)
def test_accuracy_comes_before_loss(new, old, wins):
    (accuracy, loss), (old_accuracy, old_loss) = (torch.tensor([p]).T for p in (new, old))
    assert is_better(accuracy, loss, old_accuracy, old_loss).tolist() == [wins]
