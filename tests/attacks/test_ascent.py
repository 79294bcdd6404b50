"""What climbing attacks share, against torch's."""

import torch

from depure.attacks.ascent import Adam

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
