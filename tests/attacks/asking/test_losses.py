import pytest
import torch

from depure.attacks.asking.losses import LOSSES, dlr, margin, targeted

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
