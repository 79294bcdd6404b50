"""DiffAttack and a loss at every step, on small purifiers whose states are known."""

import pytest
import torch
from torch import nn

from depure.attacks import (
    APGD,
    LOSSES,
    PGD,
    Case,
    DiffAttack,
    DiffHammer,
    FullIntermediate,
    Square,
    Traced,
    expected_grad,
)
from depure.attacks.asking.model import WithTerm
from depure.attacks.purifier.intermediate import deviation
from depure.defences import Defended
from depure.diffusion import (
    DDIM,
    DDPM,
    Checkpoint,
    EulerMaruyama,
    Full,
    Heun,
    Karras,
    ProbabilityFlow,
    Straight,
    Surrogate,
)
from depure.diffusion.schedules import VPDiscrete
from depure.noise import Noise
from depure.purifiers import BPDA, DiffPure, Identity
from depure.rows import Chunk, chunked
from depure.threat import Linf
from depure.types import Waypoint

DOUBLE = torch.float64
Y = torch.tensor([0, 1, 2])
NOISE = Noise.of(0, range(3))


def pictures(n=3):
    g = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand(n, 3, 8, 8, generator=g, dtype=DOUBLE)


def classifier():
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=DOUBLE)
    return net.requires_grad_(False)


SAMPLERS = {
    "ddpm": ("discrete", DDPM("large")),
    "ddim": ("discrete", DDIM()),
    "sde": ("vpsde", EulerMaruyama()),
    "flow": ("vpsde", ProbabilityFlow("heun")),
    "edm": (Karras(), Heun.churned(6, steps=3, s_max=0.46)),
}


@pytest.fixture
def defence(make_denoiser):
    def make(sampler="ddpm", **settings):
        schedule, rule = SAMPLERS[sampler]
        denoiser = make_denoiser(schedule, "edm" if sampler == "edm" else "epsilon")
        settings = {"t_star": 0.1, "steps": 3, **settings}
        return Defended(DiffPure(denoiser, rule, **settings), classifier())

    return make


def draws_of(model, x, draws=2):
    """Trace of every image under every draw, one at a time."""
    rows = NOISE.fold("pgd", 0).draws(draws)
    for i in range(len(x)):
        for j in range(draws):
            k = draws * i + j
            yield i, model.trace(x[i : i + 1], rows[k : k + 1])


@pytest.fixture
def first_gradient(hear):
    """What the first iteration of an attack by PGD sees."""

    def seen_by(attack, model, x=None):
        seen = []
        x = pictures() if x is None else x
        attack(model, x, Y, Linf(0.1), NOISE, watch=hear(seen.append))
        return seen[0]

    return seen_by


# --- what a defence shows ----------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trace_by_hand(defence, sampler, rounds):
    model, x = defence(sampler, rounds=rounds), pictures()
    trace = model.trace(x, NOISE)
    assert isinstance(model, Traced)
    assert torch.equal(trace.logits, model(x, NOISE))
    assert torch.equal(trace.waypoints[-1].state, model.purifier(x, NOISE))
    schedule = model.purifier.denoiser.schedule
    path = model.purifier.grid.path(schedule)
    assert len(trace.waypoints) == rounds * len(path.pairs)
    start, points = 2 * x - 1, iter(trace.waypoints)
    for turn in range(rounds):
        z = NOISE.normal("forward", (turn, 0), x)
        state = path.alpha * start + path.sigma * z
        for i, (t, s) in enumerate(path.pairs):
            point = next(points)
            label = s if isinstance(t, int) else t
            key = (turn, t if isinstance(label, int) else round(t * 1e9))
            last = i + 1 == len(path.pairs) and model.purifier.sampler.denoise_last
            fresh = NOISE.normal("reverse", key, x) if not last else None
            state = model.purifier.sampler.step(model.purifier.denoiser, state, t, s, fresh)
            torch.testing.assert_close(point.state, (state + 1) / 2, rtol=1e-12, atol=1e-12)
            noised = schedule.alpha(s) * start + schedule.sigma(s) * z
            torch.testing.assert_close(point.noised, (noised + 1) / 2, rtol=1e-12, atol=1e-12)
            assert point[:3] == (rounds - turn - 1, len(path.pairs) - i - 1, s)
        start = state
    if sampler in ("ddpm", "ddim", "edm"):  # they end at the clean image
        first = trace.waypoints[len(path.pairs) - 1]
        torch.testing.assert_close(first.noised, x)


def test_clamp_is_part_of_the_last_state(defence):
    model = defence(clamp=True, t_star=0.5)
    ends = [p.state.detach() for p in model.trace(pictures(), NOISE).waypoints]
    assert ends[-1].min() >= 0.0
    assert ends[-1].max() <= 1.0
    assert ends[0].min() < 0.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("detach", [False, True])
def test_gradient_equals_plain_autograd_and_finite_differences(
    defence, sampler, detach, first_gradient
):
    x, h = pictures(), 1e-6
    attack = DiffAttack(PGD(steps=1, eot=2), weight=3.0, balanced=False, detach=detach)
    grads = []
    for backprop in (Full(), Checkpoint(0)):
        model = defence(sampler, steps=2, rounds=2, backprop=backprop)
        seen = first_gradient(attack, model)
        grads.append(seen.grad)
    assert (grads[1] - grads[0]).norm() < 1e-10 * grads[0].norm()

    with torch.no_grad():
        held = [[p.noised for p in trace.waypoints] for _, trace in draws_of(model, x)]

    def objective(at):
        values = x.new_zeros(len(x))
        for k, (i, (logits, points)) in enumerate(draws_of(model, at)):
            value = LOSSES["ce"](logits, Y[i : i + 1]).sum()
            for p, constant in zip(points, held[k], strict=True):
                noised = constant if detach else p.noised
                value = value + 3.0 * 4.0 * (p.state - noised).square().mean() / len(points)
            values[i] += value / 2
        return values

    g = torch.Generator().manual_seed(3)
    way = torch.randn(x.shape, generator=g, dtype=DOUBLE)
    with torch.no_grad():
        numeric = (objective(x + h * way) - objective(x - h * way)) / (2 * h)
        torch.testing.assert_close(seen.loss, objective(x), rtol=1e-10, atol=1e-10)
    slope = (grads[0] * way).flatten(1).sum(1)
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_balanced_by_hand(defence, loss, first_gradient):
    """The term steers by the size of the loss's slope, draw by draw, and counts for nothing."""
    x, attack = pictures(), DiffAttack(PGD(1, eot=2, loss=loss), 3.0)
    seen = first_gradient(attack, defence(backprop=Checkpoint(0)))
    leaf, model, total = x.clone().requires_grad_(), defence(backprop=Full()), 0.0
    for i, (logits, points) in draws_of(model, leaf):
        value = LOSSES[loss](logits, Y[i : i + 1]).sum()
        (slope,) = torch.autograd.grad(value, logits, retain_graph=True)
        total = total + (value + 3.0 * slope.norm() * deviation(points).sum()) / 2
    (grad,) = torch.autograd.grad(total, leaf)
    assert (seen.grad - grad).norm() < 1e-10 * grad.norm()
    plain = first_gradient(attack.attack, model)
    torch.testing.assert_close(seen.loss, plain.loss)
    assert (seen.grad - plain.grad).norm() > 0.01 * plain.grad.norm()


@pytest.mark.parametrize("balanced", [True, False])
def test_only_a_balanced_term_vanishes_with_the_loss(defence, balanced, first_gradient):
    model, x = defence(), pictures()
    sure = Defended(model.purifier, Sure(model.classifier)).eval()
    ratio = []
    for at in (model, sure):
        plain = first_gradient(PGD(1, eot=1), at, x)
        both = first_gradient(DiffAttack(PGD(1, eot=1), balanced=balanced), at, x)
        ratio.append(float((both.grad - plain.grad).norm() / plain.grad.norm()))
    assert (ratio[1] < 10 * ratio[0]) == balanced


class Sure(nn.Module):
    """A classifier that gives all labels of these tests a logit of 12 more than its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 12.0 * nn.functional.one_hot(Y, 4)


def test_the_forward_side_matters(defence, first_gradient):
    model = defence()
    both, one = (
        first_gradient(DiffAttack(PGD(1, eot=1), weight=100.0, balanced=False, detach=d), model)
        for d in (False, True)
    )
    assert torch.equal(both.loss, one.loss)
    assert (both.grad - one.grad).norm() > 0.1 * one.grad.norm()


def test_deviation_by_hand():
    state, noised = pictures(2), pictures(2).flip(0).requires_grad_()
    points = [Waypoint(0, n, 0.0, state + 0.1 * n, noised) for n in range(3)]
    found = deviation(points)
    for b in range(2):
        each = [(4 * (p.state[b] - noised[b]) ** 2).mean() for p in points]
        torch.testing.assert_close(found[b], sum(each) / 3)
    assert found.requires_grad
    assert torch.equal(deviation(points, detach=True), found)
    assert not deviation(points, detach=True).requires_grad


def test_every_counts_from_the_end(defence, first_gradient):
    model, x = defence(steps=5), pictures()
    plain = first_gradient(PGD(1, eot=1), model).loss
    points = model.trace(x, NOISE.fold("pgd", 0)).waypoints
    for every, chosen in ((1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [1, 4]), (9, [4])):
        attack = DiffAttack(PGD(1, eot=1), balanced=False, every=every)
        loss = first_gradient(attack, model).loss
        torch.testing.assert_close(loss - plain, deviation([points[i] for i in chosen]))


# --- a loss at every step ----------------------------------------------------------------------


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_full_intermediate_by_hand(defence, loss, balanced, first_gradient):
    """Weighted losses of the states; the gradient is that of plain autograd."""
    x, attack = pictures(), FullIntermediate(PGD(1, eot=2, loss=loss), 0.7, balanced, 2.0, 0.5)
    seen = first_gradient(attack, defence(rounds=2, backprop=Checkpoint(0)))
    leaf, model = x.clone().requires_grad_(), defence(rounds=2, backprop=Full())
    weights = [1 / 9 / 2**0.5, 1 / 4 / 2**0.5, 1 / 2**0.5, 1 / 9, 1 / 4]
    told, raised = x.new_zeros(3), 0.0
    for i, (logits, points) in draws_of(model, leaf):
        value = LOSSES[loss](logits, Y[i : i + 1])
        (slope,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        term = 0.0
        for w, p in zip(weights, points[:-1], strict=True):
            term = term + 0.7 * w * LOSSES[loss](model.classifier(p.state), Y[i : i + 1])
        raised = raised + (value + term * (slope.norm() if balanced else 1.0)).sum() / 2
        told[i] += (value if balanced else value + term).detach().sum() / 2
    (grad,) = torch.autograd.grad(raised, leaf)
    torch.testing.assert_close(seen.loss, told, rtol=1e-10, atol=1e-10)
    assert (seen.grad - grad).norm() < 1e-10 * grad.norm()


def test_nothing_but_states_is_held(defence):
    """Beside the states, no activation of network or classifier is kept for the backward pass."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = classifier()

        def forward(self, x):
            return self.last(torch.stack([x * i for i in range(1, 40)]).tanh().mean(0))

    held = {}
    for backprop in (Checkpoint(0), Full()):
        for n in (5, 10):
            model, kept = defence(steps=n, backprop=backprop), {}
            model = Defended(model.purifier, Wide())
            leaf = pictures().requires_grad_()

            def note(t, kept=kept):
                kept[t.untyped_storage().data_ptr()] = t
                return t

            attack = FullIntermediate(PGD(1, eot=1))
            with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                _, value = attack._measured(model, leaf, NOISE, Y, LOSSES["ce"])
            assert value.requires_grad
            held[type(backprop), n] = sum(t.untyped_storage().nbytes() for t in kept.values())
    image = pictures().numel() * 8
    growth = {kind: (held[kind, 10] - held[kind, 5]) / 5 / image for kind in (Checkpoint, Full)}
    assert growth[Checkpoint] < 3.5  # the state in both scales, and small change
    assert growth[Full] > 6


# --- the attacks -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DiffAttack, FullIntermediate])
@pytest.mark.parametrize(
    "inner",
    [
        PGD(steps=3, eot=2), PGD(3, eot=2, average="logits"), PGD(3, loss="dlr", random_start=True),
        PGD(2, eot=2, target="runner_up"), APGD(steps=4, eot=2),
    ],
    ids=["PGD", "logits", "random", "targeted", "APGD"],
)  # fmt: skip
def test_weight_0_is_the_inner_attack_bit_for_bit(defence, kind, inner, hear):
    model, x = defence(), pictures()
    plain, with_term = [], []
    a = inner(model, x, Y, Linf(0.1), NOISE, watch=hear(plain.append))
    b = kind(inner, weight=0.0)(model, x, Y, Linf(0.1), NOISE, watch=hear(with_term.append))
    assert torch.equal(a, b)
    assert not torch.equal(a, x)
    for one, other in zip(plain, with_term, strict=True):
        assert all(torch.equal(u, v) for u, v in zip(one, other, strict=True))
    c = kind(inner, weight=100.0)(model, x, Y, Linf(0.1), NOISE)
    assert not torch.equal(a, c)
    case = Case(model, x, Y, Linf(0.1), NOISE)
    assert kind(inner).trace_length(case) == len(plain)


def test_deviation_grows_where_it_is_all_that_is_raised(defence):
    model, x, judge = defence(t_star=0.3), pictures(), NOISE.fold("judge").draws(4)

    def away(z):
        with torch.no_grad():
            points = model.trace(z.repeat_interleave(4, 0), judge).waypoints
            return deviation(points).mean()

    pgd = PGD(steps=8, eot=4)
    raised = DiffAttack(pgd, weight=1e4, balanced=False)
    ours = away(raised(model, x, Y, Linf(0.1), NOISE))
    assert ours > 1.02 * max(away(x), away(pgd(model, x, Y, Linf(0.1), NOISE)))


def test_a_term_is_averaged_over_draws_and_stays_in_its_chunk():
    """Against a naive loop, for both ways to average, on a toy."""

    class Toy:
        stages = ("a",)

        def __call__(self, x, noise):
            z = x + 0.3 * noise.normal("a", 0, x)
            return torch.tanh(z.flatten(1))[:, :4] * 3

    def term(x, noise, y, loss):
        logits = toy(x, noise)
        return logits, logits.square().sum(1) * (y + 1) + loss(logits.flip(1), y)

    toy, x, ce = Toy(), pictures(), LOSSES["ce"]
    for average in ("gradients", "logits"):
        leaf, values, rows = x.clone().requires_grad_(), [], NOISE.draws(4)
        for i in range(3):
            y, part = Y[i].expand(4), rows[4 * i : 4 * i + 4]
            logits, more = term(leaf[i].expand(4, -1, -1, -1), part, y, ce)
            own = ce(logits, y) if average == "gradients" else ce(logits.mean(0)[None], y[:1])
            values.append(own.mean() + more.mean())
        (grad,) = torch.autograd.grad(sum(values), leaf)
        for chunk in (1, 3, 100):
            both = WithTerm(toy, term)
            with chunked(Chunk(chunk)):
                found = expected_grad(both, x, Y, ce, NOISE, 4, average=average)
            torch.testing.assert_close(found.grad, grad)
            torch.testing.assert_close(found.loss, torch.stack(values).detach())
            assert both.used


@pytest.mark.parametrize("kind", [DiffAttack, FullIntermediate])
def test_non_finite_gradients_stay_in_place(defence, kind):
    """A term that is not finite holds its own image back and no other."""
    model, x = defence(), pictures()

    class Broken:
        stages, classifier = model.stages, model.classifier

        def __call__(self, x, noise):
            return model(x, noise)

        def trace(self, x, noise):
            trace = model.trace(x, noise)
            bad = torch.where(x[:, :1, :1, :1] > 0.9, torch.nan, 1.0)
            first = trace.waypoints[0]
            first = first._replace(state=first.state * bad)
            return trace._replace(waypoints=(first, *trace.waypoints[1:]))

    x[1, 0, 0, 0] = 0.99
    x_adv = kind(PGD(2, eot=2))(Broken(), x, Y, Linf(0.05), NOISE)
    assert (x_adv != x).flatten(1).any(1).tolist() == [True, False, True]


def test_a_known_defence_needs_one_draw(defence):
    model = defence()
    held = NOISE.lock("forward", "reverse")
    calls = model.purifier.denoiser.network.calls
    DiffAttack(PGD(steps=2, eot=50))(model, pictures(), Y, Linf(0.1), held)
    assert model.purifier.denoiser.network.calls - calls < 2 * 3 * 3 + 2


# --- errors ------------------------------------------------------------------------------------


def test_defences_without_states_are_refused(make_denoiser, defence):
    pure = defence().purifier
    for purifier, words in (
        (Identity(), r"Identity\(\) passes through no states"),
        (BPDA(pure), "passes through no states"),
        (pure.with_backprop(Straight()), r"Straight\(\) has no gradient .* take Checkpoint"),
        (pure.with_backprop(Surrogate(2)), "has no gradient of the states"),
    ):
        with pytest.raises(ValueError, match=words):
            DiffAttack(PGD(1))(Defended(purifier, classifier()), pictures(), Y, Linf(0.1), NOISE)

    class Bare:
        stages = ()

        def __call__(self, x, noise):
            return x.flatten(1)[:, :4]

    with pytest.raises(ValueError, match="got a Bare: take PGD"):
        DiffAttack(PGD(1))(Bare(), pictures(), Y, Linf(0.1), NOISE)


def test_a_trace_is_checked_as_a_call_is(defence):
    model = defence()
    with pytest.raises(ValueError, match="one row of noise each"):
        model.trace(pictures(), NOISE[:2])
    with pytest.raises(ValueError, match=r"within|\[0, 1\]"):
        model.trace(2 * pictures(), NOISE)
    model.classifier.train()
    with pytest.raises(ValueError, match="train mode"):
        model.trace(pictures(), NOISE)


def test_settings_and_attacks_without_gradients():
    for kind, settings, words in (
        (DiffAttack, {"weight": -1.0}, "weight must be at least 0 and finite; got -1"),
        (DiffAttack, {"weight": float("inf")}, "weight"),
        (DiffAttack, {"every": 0}, "every must be at least 1, a whole number; got 0"),
        (DiffAttack, {"every": 1.5}, "every"),
        (DiffAttack, {"attack": "pgd"}, "attack must be an attack"),
        (DiffAttack, {"attack": DiffAttack()}, "attack must be an attack"),
        (DiffAttack, {"attack": DiffHammer()}, "attack must be an attack"),
        (FullIntermediate, {"power": -0.5}, "power must be"),
        (FullIntermediate, {"round_power": float("nan")}, "round_power must be"),
        (FullIntermediate, {"weight": -1.0}, "weight must be"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**settings)


def test_an_attack_that_follows_no_gradient_is_refused(defence):
    with pytest.raises(ValueError, match="asked for no gradient"):
        DiffAttack(Square(steps=2))(defence(), pictures(), Y, Linf(0.1), NOISE)


def test_times_are_those_of_the_schedule(defence):
    model = defence(steps=4)
    assert isinstance(model.purifier.denoiser.schedule, VPDiscrete)
    times = [p.time for p in model.trace(pictures(), NOISE).waypoints]
    assert times == [74, 49, 24, -1]
