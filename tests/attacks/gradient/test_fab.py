import pytest
import torch
from torch import nn

from depure.attacks import FAB
from depure.noise import Noise
from depure.threat import L1, L2, Linf

BALLS = [Linf, L2, L1]
DUAL = {Linf: 1, L2: 2, L1: torch.inf}


class Linear(nn.Module):
    """Logits W x + b, the first class's plus `sigma` times a normal number if sigma is not 0."""

    def __init__(self, w, b, sigma=0.0):
        super().__init__()
        self.w, self.b, self.sigma = w, b, sigma
        self.stages = ("noise",) if sigma else ()
        self.rows = []

    def forward(self, x, noise):
        self.rows.append(len(x))
        logits = x.flatten(1) @ self.w.to(x).T + self.b.to(x)
        if self.sigma:
            z = noise.normal("noise", 0, x[:, :1, :1, :1]).flatten()
            logits = logits + self.sigma * torch.stack([z, *[0 * z] * (len(self.b) - 1)], 1)
        return logits


def problem(shape, classes=4, gap=0.1, sigma=0.0, dtype=torch.float64):
    """Images of class 0 so near the boundaries that the box [0, 1] does not bind."""
    g = torch.Generator().manual_seed(0)
    d = shape[1] * shape[2] * shape[3]
    w = torch.randn(classes, d, generator=g, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(shape, generator=g, dtype=torch.float64)
    # All images get the logits 0, -gap, -2 gap, ... by the smallest change.
    b = -w @ x.mean(0).flatten() - gap * torch.arange(classes)
    missing = -gap * torch.arange(classes) - (x.flatten(1) @ w.T + b)
    x = x + (missing @ torch.linalg.pinv(w).T).view(shape)
    assert 0.2 < x.min() < x.max() < 0.8
    y = torch.zeros(len(x), dtype=torch.int64)
    return Linear(w, b, sigma), x.to(dtype), y, Noise.of(0, range(len(x)))


def distance(model, ball, classes):
    """Smallest norm that reaches the boundary to one of these classes (the gap's closed form)."""
    gaps = [0.1 * k / (model.w[k] - model.w[0]).norm(DUAL[ball]) for k in classes]
    return float(min(gaps))


@pytest.mark.parametrize("shape", [(1, 1, 6, 6), (5, 3, 4, 2), (17, 1, 8, 8)], ids=str)
@pytest.mark.parametrize("ball", BALLS)
def test_known_answer_on_a_linear_classifier(shape, ball):
    model, x, y, noise = problem(shape, dtype=torch.float32)
    nearest = distance(model, ball, range(1, 4))
    found = FAB(targets=3, steps=6)(model, x, y, ball(1.0), noise)
    assert (model(found, noise).argmax(1) != y).all()
    size = ball(1.0).size(found - x) / nearest
    assert size.min() > 1 - 1e-3
    assert size.max() < 1.001
    # A ball just large enough is left with success, a smaller one is filled in vain.
    near = FAB(targets=3, steps=6)(model, x, y, ball(1.002 * nearest), noise)
    assert (model(near, noise).argmax(1) != y).all()
    small = ball(0.95 * nearest)
    beside = FAB(targets=3, steps=6)(model, x, y, small, noise)
    assert small.contains(beside, x).all()
    torch.testing.assert_close(small.size(beside - x), torch.full_like(size, small.eps))
    assert (model(beside, noise).argmax(1) == y).all()


@pytest.mark.parametrize("ball", BALLS)
def test_two_steps_by_hand(ball):
    """Overshoot eta; back to the share beta; then the mixture with the step from the image."""
    model, x, y, noise = problem((3, 1, 6, 6), classes=2)
    nearest = distance(model, ball, [1])
    near, share = 1 - 0.9 * 1.05, (1 - 0.9 * 1.05) / (2 - 0.9 * 1.05)
    mixed = (1 - share) * (0.9 * 1.05 + 1.05 * near) + share * 1.05
    first = 1 - 0.8 * 1.2
    capped = (1 - 0.01) * (0.8 * 1.2 + 1.2 * first) + 0.01 * 1.2
    for settings, factor in (
        ({"steps": 1}, 1.05),
        ({"steps": 2}, mixed),
        ({"steps": 2, "eta": 1.2, "beta": 0.8, "alpha_max": 0.01}, capped),
    ):
        found = FAB(targets=1, search=0, **settings)(model, x, y, ball(1.0), noise)
        sizes = torch.full_like(x[:, 0, 0, 0], factor * nearest)
        torch.testing.assert_close(ball(1.0).size(found - x), sizes)


def test_targets_are_tried_from_the_likeliest_and_the_best_is_kept(hear):
    model, x, y, noise = problem((4, 1, 6, 6))
    model.w[3] *= 20.0  # the last class by logit is the nearest by far
    model.b = -model.w @ x[0].flatten() - 0.1 * torch.arange(4)
    x = x[:1].expand(4, -1, -1, -1).clone()
    seen = []
    attack = FAB(targets=3, steps=5, restarts=2, eot=1)
    found = attack(model, x, y, L2(1.0), noise, watch=hear(seen.append))
    assert len(seen) == attack.iterations == 30
    for rank in range(3):
        measured = seen[10 * rank]
        torch.testing.assert_close(measured.loss, torch.full_like(measured.loss, -0.1 * (rank + 1)))
        gradient = (model.w[rank + 1] - model.w[0]).view_as(x[0])
        torch.testing.assert_close(measured.grad, gradient.expand_as(x))
        assert (measured.accuracy == 1).all()
    size, nearest = L2(1.0).size(found - x), distance(model, L2, [3])
    assert nearest < 0.5 * distance(model, L2, [1, 2])
    torch.testing.assert_close(size, torch.full_like(size, nearest), rtol=0.01, atol=0.0)
    assert (model(found, noise).argmax(1) == 3).all()
    fewer = FAB(targets=2, steps=5)(model, x, y, L2(1.0), noise)
    assert (model(fewer, noise).argmax(1) != 3).all()


def test_images_wrong_already_come_back_unchanged():
    model, x, y, noise = problem((4, 1, 6, 6))
    y[1] = 2
    found = FAB(targets=3, steps=5)(model, x, y, L2(1.0), noise)
    assert torch.equal(found[1], x[1])
    assert (found[[0, 2, 3]] != x[[0, 2, 3]]).flatten(1).any(1).all()


class Bowl(nn.Module):
    """Class 1 outside a sphere around grey: a curved boundary, far from linear near its centre."""

    stages = ()

    def forward(self, x, noise):
        out = (x - 0.5).flatten(1).square().sum(1) - 0.04
        return torch.stack([torch.zeros_like(out), out], 1)


def test_final_search_closes_in_on_a_curved_boundary():
    g = torch.Generator().manual_seed(0)
    x = 0.5 + 0.02 * torch.randn(6, 1, 3, 3, generator=g, dtype=torch.float64)
    y, noise = torch.zeros(6, dtype=torch.int64), Noise.of(0, range(6))
    exact = 0.2 - (x - 0.5).flatten(1).norm(dim=1)

    def excess(**settings):
        found = FAB(targets=1, **settings)(Bowl(), x, y, L2(1.0), noise)
        assert (Bowl()(found, noise).argmax(1) == 1).all()
        return (L2(1.0).size(found - x) / exact - 1).max()

    assert excess(steps=3, search=0) > 0.02
    assert excess(steps=3, search=3) < 0.5 * excess(steps=3, search=0)
    assert excess(steps=50) < 0.005


def test_a_random_restart_leaves_a_flat_spot_and_is_keyed():
    y, x = torch.zeros(5, dtype=torch.int64), torch.full((5, 1, 3, 3), 0.5)
    noise, ball = Noise.of(0, range(5)), Linf(0.2)
    stuck = FAB(targets=1, steps=5)(Bowl(), x, y, ball, noise)
    assert torch.equal(stuck, x)
    attack = FAB(targets=1, steps=5, restarts=2)
    freed = attack(Bowl(), x, y, ball, noise)
    assert (Bowl()(freed, noise).argmax(1) == 1).all()
    alone = attack(Bowl(), x[3:4], y[3:4], ball, Noise.of(0, [3]))
    torch.testing.assert_close(alone, freed[3:4])
    assert not torch.allclose(attack(Bowl(), x, y, ball, Noise.of(1, range(5))), freed)


def test_known_noise_is_one_draw_and_the_attack_is_deterministic():
    model, x, y, noise = problem((5, 1, 6, 6), sigma=0.05)
    noise = noise.lock("noise")
    model.rows.clear()
    found = FAB(targets=3, steps=6, eot=10)(model, x, y, L2(1.0), noise)
    assert set(model.rows) == {5}
    # The draw shifts the first logit: the distances are the shifted gaps'.
    shifted = model(x, noise)
    gaps = shifted[:, :1] - shifted[:, 1:]
    nearest = (gaps / (model.w[1:] - model.w[0]).norm(dim=1)).amin(1).clamp_min(0.0)
    torch.testing.assert_close(L2(1.0).size(found - x), nearest, rtol=0.01, atol=1e-9)


def accuracy(model, x, noise):
    rows = noise.fold("fresh").draws(500)
    right = model(x.repeat_interleave(500, 0), rows).argmax(1) == 0
    return right.double().view(len(x), 500).mean(1)


def test_a_lucky_draw_is_no_success():
    """One draw in six fools the clean images; most draws do so from a known distance on."""
    model, x, y, noise = problem((24, 1, 6, 6), classes=2, sigma=0.1)
    assert 0.7 < accuracy(model, x, noise).min() < accuracy(model, x, noise).max() < 0.95
    nearest = distance(model, L2, [1])
    mean = {}
    for steps in (5, 40):
        found = FAB(targets=1, steps=steps, eot=20)(model, x, y, L2(1.0), noise)
        size = L2(1.0).size(found - x) / nearest
        assert size.min() > 0.25
        assert 0.85 < size.mean() < 1.2
        assert abs(accuracy(model, found, noise).mean() - 0.5) < 0.08
        mean[steps] = size.mean()
    assert mean[40] > 0.9 * mean[5]  # more tries are not more luck


def test_a_stricter_share_of_wrong_draws_is_reached():
    """P(right) = Phi(-(size - 1)) here, as sigma equals the gap: 0.1 at 2.28 distances."""
    model, x, y, noise = problem((16, 1, 6, 6), classes=2, sigma=0.1)
    attack = FAB(targets=1, steps=30, eot=50, below=0.1)
    found = attack(model, x, y, L2(1.0), noise)
    assert 0.05 < accuracy(model, found, noise).mean() < 0.16
    size = L2(1.0).size(found - x).mean() / distance(model, L2, [1])
    assert 2.0 < size < 2.6


class Broken(Linear):
    """NaN gradients for images whose first pixel is 0.25; NaN logits as well if `logits`."""

    logits = False

    def forward(self, x, noise):
        bad = (x[:, 0, 0, :1] - 0.25).abs() < 1e-12
        x = x * 1.0
        if x.requires_grad:
            x.register_hook(lambda g: torch.where(bad[:, :, None, None], torch.nan, g))
        out = super().forward(x, noise)
        return torch.where(bad, torch.nan, out) if self.logits else out


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("ball", BALLS)
def test_a_broken_gradient_leaves_that_image_in_place(ball, logits, hear):
    model, x, y, noise = problem((4, 1, 6, 6))
    whole = FAB(targets=2, steps=6)(model, x, y, ball(1.0), noise)
    broken = Broken(model.w, model.b)
    broken.logits = logits
    x[2, 0, 0, 0] = 0.25
    y[2] = model(x, noise).argmax(1)[2]
    finite = []
    attack = FAB(targets=2, steps=6)
    found = attack(broken, x, y, ball(1.0), noise, watch=hear(lambda m: finite.append(m.finite)))
    assert torch.equal(found[2], x[2])
    torch.testing.assert_close(found[[0, 1, 3]], whole[[0, 1, 3]])
    assert (torch.stack(finite) == torch.tensor([True, True, False, True])).all()


def test_a_network_that_breaks_down_is_fooled():
    """NaN logits, whose argmax is the first class, short of the boundary."""

    class Overflow(Linear):
        def forward(self, x, noise):
            out = super().forward(x, noise)
            return torch.where(out[:, :1] > out[:, 1:] - 0.05, torch.nan, out)

    model, x, y, noise = problem((3, 1, 6, 6), classes=2)
    broken = Overflow(model.w.flip(0), model.b.flip(0))
    found = FAB(targets=1, steps=5)(broken, x, 1 - y, L2(1.0), noise)
    assert broken(found, noise).isnan().any(1).all()


def test_too_few_classes():
    model, x, y, noise = problem((2, 1, 6, 6))
    with pytest.raises(ValueError, match=r"targets=9, but the model has 3 \(4 in all\).*targets=3"):
        FAB()(model, x, y, L2(0.5), noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": 0}, "targets must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 1.5}, "restarts must be at least 1"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"search": -1}, "search must be at least 0"),
        ({"alpha_max": 1.1}, r"alpha_max must lie in \[0, 1\]"),
        ({"eta": 0.9}, "eta must be at least 1"),
        ({"beta": 1.0}, r"beta must lie inside \(0, 1\)"),
        ({"below": 0.0}, "below must be a share"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FAB(**settings)


def test_defaults_are_autoattack_s():
    attack = FAB()
    assert (attack.targets, attack.steps, attack.restarts, attack.iterations) == (9, 100, 1, 900)
    assert (attack.alpha_max, attack.eta, attack.beta, attack.search) == (0.1, 1.05, 0.9, 3)
