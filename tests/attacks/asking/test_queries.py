"""Queries of a defence, against a naive loop."""

import torch
from torch import nn

from depure.attacks import LOSSES
from depure.attacks.asking.queries import query_margins, random_signs
from depure.noise import Noise
from depure.rows import Chunk, chunked


class Shifted(nn.Module):
    """Two classes, logits +-(1 - 4 w.(x - 1/2) / |w|_1 - 4 z), z normal with spread `noisy`."""

    def __init__(self, noisy=0.0, shape=(2, 4, 4)):
        super().__init__()
        self.stages = ("a",) if noisy else ()
        self.noisy, self.asked = noisy, []
        g = torch.Generator().manual_seed(5)
        self.w = torch.randn(shape, generator=g, dtype=torch.float64)

    def lead(self, x):
        """Half the margin of class 0, without noise: 1 at x = 1/2."""
        return 1.0 - 4.0 * ((x - 0.5) * self.w).flatten(1).sum(1) / self.w.abs().sum()

    def forward(self, x, noise):
        self.asked.append(x)
        lead = self.lead(x)
        if self.noisy:
            lead = lead - 4.0 * self.noisy * noise.normal("a", 0, x[:, 0, 0, :1])[:, 0]
        return torch.stack([lead, -lead], 1)


def pictures(indices):
    g = [torch.Generator().manual_seed(i) for i in indices]
    x = [0.5 + 0.1 * (torch.rand(2, 4, 4, generator=k, dtype=torch.float64) - 0.5) for k in g]
    return torch.stack(x), torch.tensor([i % 2 for i in indices]), Noise.of(8, indices)


def test_queries_against_a_naive_loop():
    """Candidates of one image meet the same draws; margins and accuracies are means over them."""
    x, y, noise = pictures([1, 2, 3])
    points = torch.stack([x, x + 0.3, x], 1)
    model = Shifted(0.5)
    for chunk in (1, 7, 128):
        model.asked.clear()
        with chunked(Chunk(chunk)):
            answer = query_margins(model, points, y, noise, 6)
        assert max(len(a) for a in model.asked) == min(chunk, 54)
        assert torch.equal(answer.margin[:, 0], answer.margin[:, 2])
        rows = noise.draws(6)
        for i in range(3):
            for n in range(3):
                logits = torch.cat(
                    [model(points[i : i + 1, n], rows[[6 * i + d]]) for d in range(6)]
                )
                mean = LOSSES["margin"](logits, y[i].repeat(6)).mean()
                torch.testing.assert_close(answer.margin[i, n], mean)
                right = (logits.argmax(1) == y[i]).double().mean()
                torch.testing.assert_close(answer.accuracy[i, n], right)


def test_signs_are_fair_and_independent():
    like = torch.empty(400, 3, 5, 5)
    found = random_signs(Noise.of(0, range(400)), "any", like)
    assert found.shape == like.shape
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    flat = found.flatten(1)
    assert flat.mean(0).abs().max() < 4.5 / 20
    correlation = flat.T @ flat / 400 - torch.eye(75)
    assert correlation.abs().max() < 5 / 20
    assert torch.equal(found[7:8], random_signs(Noise.of(0, [7]), "any", like[:1]))
