import pytest
import torch

from depure.attacks.asking.losses import LOSSES, dlr, margin, targeted, vanished

Z = torch.tensor([[3.0, 1.0, -2.0, 0.5], [0.0, 2.0, 1.0, -1.0]])


def test_values_by_hand():
    y = torch.tensor([0, 0])
    torch.testing.assert_close(margin(Z, y), torch.tensor([-2.0, 2.0]))
    # sorted logits: 3, 1, .5, -2 and 2, 1, 0, -1
    torch.testing.assert_close(dlr(Z, y), torch.tensor([-2.0 / 2.5, 2.0 / 2.0]))
    expected = -torch.log_softmax(Z, 1)[:, 0]
    torch.testing.assert_close(LOSSES["ce"](Z, y), expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_positive_exactly_when_wrong_for_margins_and_targeting_flips(name):
    y = torch.tensor([0, 1])
    torch.testing.assert_close(targeted(LOSSES[name])(Z, y), -LOSSES[name](Z, y))
    if name != "ce":
        assert (LOSSES[name](Z, y) < 0).all()
        assert (LOSSES[name](Z, torch.tensor([2, 3])) > 0).all()


def test_dlr_is_shift_and_scale_invariant_and_wants_three_classes():
    y = torch.tensor([0, 1])
    torch.testing.assert_close(dlr(5 * Z + 7, y), dlr(Z, y))
    with pytest.raises(ValueError, match="at least 3 classes"):
        dlr(Z[:, :2], y)


def test_what_has_vanished():
    y = torch.tensor([0, 1])
    sure = torch.stack([40 * Z[0], Z[1]])
    ce = LOSSES["ce"]
    assert vanished(ce, sure, y).tolist() == [True, False]
    assert vanished(ce, sure.double(), y).tolist() == [True, False]
    assert vanished(ce, 15 * Z, y).tolist() == [True, False]
    assert vanished(ce, 15 * Z.double(), y).tolist() == [False, False]
    assert not vanished(LOSSES["margin"], sure, y).any()
    assert not vanished(lambda z, y: 1e-9 * ce(z, y), Z, y).any()  # small, but it points somewhere
    assert not vanished(lambda z, y: z[:, 0], Z, y).any()  # of one sign, but large
    assert not vanished(ce, Z[:, :1], torch.tensor([0, 0])).any()
    assert not vanished(ce, torch.full((2, 4), torch.nan), y).any()
