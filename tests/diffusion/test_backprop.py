"""Exact drivers equal plain autograd and finite differences; the others do what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import (
    DDIM,
    DDPM,
    Adjoint,
    Backprop,
    Blind,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Grid,
    ProbabilityFlow,
    Sampler,
    Straight,
    Surrogate,
)
from depure.diffusion.backprop import checkpoint as checkpoint_module
from depure.diffusion.backprop.checkpoint import step_bytes
from depure.diffusion.backprop.replay import replay
from depure.diffusion.chain import Chain, State
from depure.noise import Noise
from depure.purifiers.diffusion.rounds import Rounds
from depure.types import Time

MakeDenoiser = Callable[..., Denoiser]

SAMPLERS: dict[str, tuple[str, Sampler]] = {
    "ddpm small": ("discrete", DDPM()),
    "ddpm small clip": ("discrete", DDPM(clip_x0=True)),
    "ddpm large": ("discrete", DDPM("large")),
    "ddpm large clip": ("discrete", DDPM("large", clip_x0=True)),
    "ddim": ("discrete", DDIM()),
    "ddim 0.7": ("discrete", DDIM(0.7)),
    "euler-maruyama": ("vpsde", EulerMaruyama()),
    "euler-maruyama denoised": ("vpsde", EulerMaruyama(denoise_last=True)),
    "flow euler": ("vpsde", ProbabilityFlow()),
    "flow heun": ("vpsde", ProbabilityFlow("heun")),
}


def states(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype) - 1


def first(state: State) -> Tensor:
    return state[0]


def of(rounds: Rounds, x: Tensor) -> Chain:
    """The chain from a state to a state, in diffusion space throughout."""
    return rounds.chain(x, first)


def run(driver: Backprop, rounds: Rounds, x: Tensor) -> Tensor:
    return driver.run(of(rounds, x), x)


def states_of(driver: Backprop, rounds: Rounds, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(first(state) for state in driver.states(of(rounds, x), x))


def coarse(rounds: Rounds, steps: int) -> Rounds:
    return replace(rounds, grid=replace(rounds.grid, steps=steps))


def rounds_of(
    make: MakeDenoiser, sampler: str, steps: int = 4, rounds: int = 1, **net: Any
) -> Rounds:
    schedule, rule = SAMPLERS[sampler]
    noise = Noise.of(0, range(2))
    return Rounds(make(schedule, **net), rule, Grid(0.1, steps), noise, rounds)


def value_and_grad(
    backprop: Backprop, chain: Rounds, x: Tensor | None = None
) -> tuple[Tensor, ...]:
    x = (states() if x is None else x).clone().requires_grad_()
    out = run(backprop, chain, x)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).sin()
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    return out.detach(), grad


def assert_same_gradient(a: Tensor, b: Tensor, relative: float = 1e-10) -> None:
    assert b.norm() > 1e-3
    assert (a - b).norm() / b.norm() < relative


def partial(chain: Rounds, kept: int, dtype: torch.dtype = torch.float64) -> Checkpoint:
    """A budget that keeps `kept` of the chain's steps."""
    driver = Checkpoint(memory_limit=(kept + 1) * step_bytes(of(chain, states(dtype))))
    assert driver.kept(of(chain, states(dtype)), states(dtype)) == kept
    return driver


def saved_bytes(run: Callable[[], Tensor], chain: Rounds) -> int:
    """Bytes that autograd holds on to for the result of `run`, weights not counted."""
    weights = {p.data_ptr() for p in chain.denoiser.parameters()}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = run()
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for t in held.values())


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_checkpoint_equals_full(
    make_denoiser: MakeDenoiser, sampler: str, rounds: int, steps: int
) -> None:
    chain = rounds_of(make_denoiser, sampler, steps, rounds)
    value, grad = value_and_grad(Full(), chain)
    total = steps * rounds
    drivers = [Checkpoint(), Checkpoint(0), *(Checkpoint(0, segment=m) for m in (2, 3, 7))]
    if total >= 3:
        drivers += [partial(chain, 1), partial(chain, total // 2), partial(chain, total - 2)]
        drivers.append(Checkpoint(partial(chain, total // 2).memory_limit, segment=2))
    for driver in drivers:
        ours, ours_grad = value_and_grad(driver, chain)
        assert torch.equal(ours, value), driver
        assert_same_gradient(ours_grad, grad)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_finite_differences(make_denoiser: MakeDenoiser, sampler: str, rounds: int) -> None:
    chain, x, h = rounds_of(make_denoiser, sampler, 5, rounds), states(), 1e-5
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weight = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x).sin()
    _, grad = value_and_grad(Checkpoint(0), chain)
    with torch.no_grad():
        ends = [(run(Full(), chain, x + s * h * direction) * weight).sum() for s in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * h)
    assert (grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm large clip", "ddim", "euler-maruyama"])
def test_unet(make_denoiser: MakeDenoiser, sampler: str) -> None:
    chain, x, h = rounds_of(make_denoiser, sampler, 3, 2, unet=True), states(), 1e-5
    _, grad = value_and_grad(Full(), chain)
    for driver in (Checkpoint(0), partial(chain, 2), Checkpoint(0, segment=2)):
        assert_same_gradient(value_and_grad(driver, chain)[1], grad)
    weight = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x).sin()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    with torch.no_grad():
        ends = [(run(Full(), chain, x + s * h * direction) * weight).sum() for s in (1, -1)]
    numeric = (ends[0] - ends[1]).item() / (2 * h)
    assert (grad * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


def test_clipping_is_at_work(make_denoiser: MakeDenoiser) -> None:
    """The cases named clip clip some pixels and not others, so their gradients mean something."""
    values = [
        value_and_grad(Full(), rounds_of(make_denoiser, s))
        for s in ("ddpm small", "ddpm small clip")
    ]
    assert not torch.equal(values[0][1], values[1][1])
    dead = (values[1][1] == 0).double().mean()
    assert dead < 0.5


@pytest.mark.parametrize("sampler", ["ddpm small", "ddim", "flow heun"])
@pytest.mark.parametrize("inputs", ["weights", "weights and images"])
def test_gradients_of_weights(make_denoiser: MakeDenoiser, sampler: str, inputs: str) -> None:
    chain = rounds_of(make_denoiser, sampler, 4, 2, freeze=False)
    results = []
    for driver in (Full(), Checkpoint(), Checkpoint(0), partial(chain, 3), Checkpoint(0, 3)):
        x = states().requires_grad_(inputs != "weights")
        wanted = [*chain.denoiser.parameters(), *([x] if x.requires_grad else [])]
        results.append(torch.autograd.grad(run(driver, chain, x).square().sum(), wanted))
    for other in results[1:]:
        for ours, full in zip(other, results[0], strict=True):
            assert_same_gradient(ours, full)


@pytest.mark.parametrize("of_x", [False, True], ids=["leaf", "function of x"])
def test_chain_that_closes_over_a_tensor(make_denoiser: MakeDenoiser, of_x: bool) -> None:
    """A guidance image is no input of the chain, but its gradient is part of the answer."""

    class Guided(Sampler):
        def __init__(self, guide: Tensor) -> None:
            self.guide = guide

        @property
        def stochastic(self) -> bool:
            return True

        def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Any) -> Tensor:
            return DDPM().step(denoiser, x, t, s, z) + 0.3 * torch.tanh(self.guide - x)

    plain, results = rounds_of(make_denoiser, "ddpm small", 4), []
    size = step_bytes(of(plain, states()))
    for driver in (Full(), Checkpoint(0), *(Checkpoint(round(1.2 * k * size)) for k in (2, 3, 4))):
        x, leaf = states().requires_grad_(), states().flip(3).requires_grad_()
        guided = Guided(0.5 * x.flip(2) + leaf if of_x else leaf)
        out = run(driver, Rounds(plain.denoiser, guided, plain.grid, plain.noise), x)
        results.append(torch.autograd.grad(out.square().sum(), (x, leaf)))
    for other in results[1:]:
        for ours, full in zip(other, results[0], strict=True):
            assert_same_gradient(ours, full)


# --- what the backward pass may and may not do --------------------------------------------------


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("segment", [1, 3])
def test_second_backward(make_denoiser: MakeDenoiser, kept: int, segment: int) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 6)
    driver = Checkpoint(partial(chain, kept).memory_limit if kept else 0, segment)
    x = states().requires_grad_()
    loss = run(driver, chain, x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, x)


def test_replay_twice_without_retain_graph_raises(make_denoiser: MakeDenoiser) -> None:
    x = states().requires_grad_()
    (out,) = replay(rounds_of(make_denoiser, "ddim").links(), (x,))
    out.backward(torch.ones_like(out))
    with pytest.raises(RuntimeError, match="second time"):
        out.backward(torch.ones_like(out))


def test_double_backward_is_refused(make_denoiser: MakeDenoiser) -> None:
    """The replay has no second derivative; it must not pass for zero beside one that has."""
    x = states().requires_grad_()
    out = run(Checkpoint(0), rounds_of(make_denoiser, "ddim"), x)
    loss = out.square().sum() + x.pow(3).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_images_changed_in_place_before_backward_raise(make_denoiser: MakeDenoiser) -> None:
    leaf = states().requires_grad_()
    x = leaf * 1.0
    out = run(Checkpoint(0), rounds_of(make_denoiser, "ddim"), x)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_accumulate_into_leaves(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small")
    x = states().requires_grad_()
    for _ in range(2):
        run(Checkpoint(0), chain, x).square().sum().backward()
    (full,) = torch.autograd.grad(run(Full(), chain, x).square().sum(), x)
    assert_same_gradient(x.grad, 2 * full)


@pytest.mark.parametrize("driver", [Checkpoint(0), Checkpoint(0, 2), Checkpoint()])
def test_recomputation_meets_the_same_states_and_times(
    make_denoiser: MakeDenoiser, driver: Checkpoint
) -> None:
    """Noise drawn inside a link is the same when the link runs again, and so is its time."""
    chain = rounds_of(make_denoiser, "ddpm large", 5, 2)
    seen: dict[float, list[Tensor]] = {}

    def note(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        seen.setdefault(args[1][0].item(), []).append(args[0].detach().clone())

    step_bytes(of(chain, states()))
    chain.denoiser.network.register_forward_pre_hook(note)
    torch.manual_seed(0)
    x = states().requires_grad_()
    out = run(driver, chain, x)
    torch.manual_seed(1)  # a generator that moves between the passes must not matter
    out.sum().backward()
    assert set(seen) == {99, 79, 59, 39, 19}
    for inputs in seen.values():
        assert len({tuple(i.flatten().tolist()) for i in inputs}) == 2  # one for each round


def test_autocast(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 4, 2, dtype=torch.float32)
    x = states(torch.float32)
    results = []
    some = partial(chain, 3, torch.float32)
    for driver in (Full(), Checkpoint(0), Checkpoint(0, 3), some, Checkpoint()):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = run(driver, chain, leaf)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0])
        assert_same_gradient(grad, results[0][1], 1e-5)
    exact = value_and_grad(Full(), chain, x)[0]
    assert 1e-4 < (exact - results[0][0]).abs().max() < 0.3


def test_backward_inside_autocast_of_a_plain_forward(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", dtype=torch.float32)
    grads = []
    for driver in (Full(), Checkpoint(0)):
        leaf = states(torch.float32).requires_grad_()
        out = run(driver, chain, leaf)
        with torch.autocast("cpu", torch.bfloat16):
            grads.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert_same_gradient(grads[1], grads[0], 1e-5)


class Cut(Sampler):
    """Detaches its input, or runs under no_grad."""

    @property
    def stochastic(self) -> bool:
        return False

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Any) -> Tensor:
        return DDIM().step(denoiser, x.detach() if t == 49 else x, t, s, z)


@pytest.mark.parametrize("segment", [1, 2])
def test_cut_graph_is_refused(make_denoiser: MakeDenoiser, segment: int) -> None:
    chain = Rounds(make_denoiser(), Cut(), Grid(0.1, 2), Noise.of(0, range(2)))
    x = states().requires_grad_()
    out = run(Checkpoint(0, segment), chain, x)
    with pytest.raises(RuntimeError, match=r"cut the graph .* Straight\(\)"):
        torch.autograd.grad(out.sum(), x)


def test_cut_graph_is_refused_where_the_graph_is_kept(make_denoiser: MakeDenoiser) -> None:
    chain = Rounds(make_denoiser(), Cut(), Grid(0.1, 2), Noise.of(0, range(2)))
    x = states().requires_grad_()
    with pytest.raises(RuntimeError, match="cut the graph"):
        torch.autograd.grad(run(Checkpoint(), chain, x).sum(), x)


# --- cost --------------------------------------------------------------------------------------


def test_nothing_is_recorded_without_gradients(
    make_denoiser: MakeDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 5)
    full = value_and_grad(Full(), chain)[0]
    calls = chain.denoiser.network.calls

    def fail(*_: object) -> None:
        raise AssertionError("states stored, or a step probed, where no gradient is wanted")

    monkeypatch.setattr(checkpoint_module, "replay", fail)
    monkeypatch.setattr(checkpoint_module, "step_bytes", fail)
    with torch.no_grad():
        out = run(Checkpoint(), chain, states().requires_grad_())
    assert not out.requires_grad
    assert torch.equal(out, full)
    assert chain.denoiser.network.calls == calls + 5


@pytest.mark.parametrize("driver", [Checkpoint(), Checkpoint(0), Full()])
def test_images_that_need_no_gradient_get_none(
    make_denoiser: MakeDenoiser, driver: Backprop
) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 5)
    out = run(driver, chain, states())
    assert not out.requires_grad
    assert torch.equal(out, value_and_grad(Full(), chain)[0])


@pytest.mark.parametrize(
    ("kept", "segment", "calls"),
    # forward T, then T - K again; a longer segment runs all but its last link once more
    [(0, 1, 24), (5, 1, 19), (11 - 1, 1, 14), (12, 1, 12), (0, 3, 24 + 8), (0, 5, 24 + 9)],
)
def test_number_of_network_calls(
    make_denoiser: MakeDenoiser, kept: int, segment: int, calls: int
) -> None:
    chain = rounds_of(make_denoiser, "ddim", 6, 2)
    size = step_bytes(of(chain, states()))
    driver = Checkpoint((kept + 1) * size if kept else 0, segment)
    before = chain.denoiser.network.calls
    value_and_grad(driver, chain)
    assert chain.denoiser.network.calls - before == calls


def test_step_is_probed_once_per_shape(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 5)
    network, sizes = chain.denoiser.network, []
    for x in (states(), states(), states()[:, :, :4], states()):
        before = network.calls
        sizes.append((step_bytes(of(chain, x)), network.calls - before))
    full = sizes[0][0]
    assert [calls for _, calls in sizes] == [1, 0, 1, 0]
    assert [size for size, _ in sizes] == pytest.approx([full, full, full / 2, full], 0.02)
    before = network.calls
    for budget in (None, 10 * full, 2 * full):
        Checkpoint(budget).kept(of(chain, states()), states())
    assert network.calls == before


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_probe_is_right(make_denoiser: MakeDenoiser, sampler: str) -> None:
    chain, x = rounds_of(make_denoiser, sampler, 6), states().requires_grad_()
    full = saved_bytes(lambda: run(Full(), chain, x), chain)
    assert full / 6 == pytest.approx(step_bytes(of(chain, x)), rel=0.25)


def test_probe_tells_one_call_a_step_from_two(make_denoiser: MakeDenoiser) -> None:
    euler = rounds_of(make_denoiser, "flow euler")
    heun = replace(euler, sampler=ProbabilityFlow("heun"))
    once = step_bytes(of(euler, states()))
    assert step_bytes(of(heun, states())) > 1.8 * once


def test_memory_stays_within_the_budget(make_denoiser: MakeDenoiser) -> None:
    chain, x = rounds_of(make_denoiser, "ddpm small", 12), states().requires_grad_()
    size, image = step_bytes(of(chain, x)), x.numel() * x.element_size()
    assert size > 4 * image
    for kept in (0, 1, 5, 10):
        driver = Checkpoint((kept + 1) * size if kept else 0)
        held = saved_bytes(lambda driver=driver: run(driver, chain, x), chain)
        assert held <= kept * size + 12 * image
    states_only = [
        saved_bytes(lambda m=m: run(Checkpoint(0, m), chain, x), chain) for m in (1, 2, 3, 7)
    ]
    assert states_only == [n * image for n in (12, 6, 4, 2)]


def test_kept_grows_with_the_budget(make_denoiser: MakeDenoiser) -> None:
    chain, x = rounds_of(make_denoiser, "ddpm small", 9), states()
    size = step_bytes(of(chain, x))
    kept = [Checkpoint(round(size * b / 4)).kept(of(chain, x), x) for b in range(48)]
    assert kept == sorted(kept)
    assert set(kept) == {0, *range(1, 8), 9}
    for k, b in zip(kept, range(48), strict=True):
        assert k * size <= size * b / 4  # K graphs fit
        assert k == 9 or k == 0 or (k + 1) * size <= size * b / 4  # and one to replay with
    assert Checkpoint().kept(of(chain, x), x) == 9  # the default budget holds this


# --- all states --------------------------------------------------------------------------------


def mixed(states: Sequence[Tensor], only: Sequence[int] | None = None) -> Tensor:
    """A loss of the states, or of some, another function of each."""
    terms = [
        (state * torch.linspace(-1, 2, state.numel(), dtype=state.dtype).view_as(state).sin()).sum()
        + (0.3 + i) * state.pow(3).mean()
        for i, state in enumerate(states)
        if only is None or i in only
    ]
    return torch.stack(terms).sum()


def states_and_grad(
    backprop: Backprop, chain: Rounds, only: Sequence[int] | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    x = states().requires_grad_()
    out = states_of(backprop, chain, x)
    (grad,) = torch.autograd.grad(mixed(out, only), x)
    return tuple(state.detach() for state in out), grad


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_states_equal_plain_autograd(
    make_denoiser: MakeDenoiser, sampler: str, rounds: int
) -> None:
    chain = replace(rounds_of(make_denoiser, sampler, 4, rounds), clamp=True)
    x, plain = states().requires_grad_(), []
    state = x
    for link in chain.links():
        (state,) = link((state,), ())
        plain.append(state)
    (grad,) = torch.autograd.grad(mixed(plain), x)
    drivers = [Full(), Checkpoint(), Checkpoint(0), Checkpoint(0, segment=3)]
    for driver in [*drivers, partial(chain, 2), partial(chain, 4 * rounds - 2)]:
        ours, ours_grad = states_and_grad(driver, chain)
        assert len(ours) == 4 * rounds
        for a, b in zip(ours, plain, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(ours[-1], value_and_grad(driver, chain)[0])
        assert_same_gradient(ours_grad, grad)


@pytest.mark.parametrize("only", [[0], [1], [3], [0, 2], [5], []])
def test_states_that_no_loss_asks_for(make_denoiser: MakeDenoiser, only: list[int]) -> None:
    """Their steps are not even recomputed, where no later state was asked for."""
    chain = rounds_of(make_denoiser, "ddpm small", 3, 2)
    if not only:
        x = states().requires_grad_()
        loss = states_of(Checkpoint(0), chain, x)[0].detach().sum() + 0.0 * x.sum()
        assert not torch.autograd.grad(loss, x)[0].any()
        return
    before = chain.denoiser.network.calls
    grad = states_and_grad(Checkpoint(0), chain, only)[1]
    assert chain.denoiser.network.calls - before == 6 + max(only) + 1
    assert_same_gradient(grad, states_and_grad(Full(), chain, only)[1])


@pytest.mark.parametrize("sampler", ["ddpm large clip", "ddim", "euler-maruyama", "flow heun"])
def test_finite_differences_of_states(make_denoiser: MakeDenoiser, sampler: str) -> None:
    chain, x, h = rounds_of(make_denoiser, sampler, 3, 2), states(), 1e-5
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    grad = states_and_grad(Checkpoint(0), chain)[1]
    with torch.no_grad():
        ends = [mixed(states_of(Full(), chain, x + s * h * direction)) for s in (1, -1)]
    numeric = (ends[0] - ends[1]).item() / (2 * h)
    assert (grad * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


def test_states_keep_states_only(make_denoiser: MakeDenoiser) -> None:
    """No graph is held: the image, and all states but the end; a budget holds what it says."""
    chain, x = rounds_of(make_denoiser, "ddpm small", 12), states().requires_grad_()
    size, image = step_bytes(of(chain, x)), x.numel() * x.element_size()

    def held(driver: Backprop) -> int:
        return saved_bytes(lambda: states_of(driver, chain, x)[-1], chain)

    assert held(Checkpoint(0)) == 12 * image
    assert held(Full()) > 12 * 4 * image
    for kept in (1, 5, 10):
        assert held(Checkpoint((kept + 1) * size)) <= kept * size + 12 * image
    for kept, calls in ((0, 24), (5, 19), (12, 12)):
        driver = Checkpoint((kept + 1) * size if kept else 0)
        before = chain.denoiser.network.calls
        states_and_grad(driver, chain)
        assert chain.denoiser.network.calls - before == calls


@pytest.mark.parametrize("inputs", ["weights", "weights and images"])
def test_states_differentiate_weights(make_denoiser: MakeDenoiser, inputs: str) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 4, 2, freeze=False)
    results = []
    for driver in (Full(), Checkpoint(), Checkpoint(0), partial(chain, 3)):
        x = states().requires_grad_(inputs != "weights")
        wanted = [*chain.denoiser.parameters(), *([x] if x.requires_grad else [])]
        results.append(torch.autograd.grad(mixed(states_of(driver, chain, x)), wanted))
    for other in results[1:]:
        for ours, full in zip(other, results[0], strict=True):
            assert_same_gradient(ours, full)


def test_a_step_that_returns_what_it_was_given(make_denoiser: MakeDenoiser) -> None:
    class Lazy(Sampler):
        @property
        def stochastic(self) -> bool:
            return False

        def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Any) -> Tensor:
            return x if t in (99, 49) else DDIM().step(denoiser, x, t, s, z)

    chain = Rounds(make_denoiser(), Lazy(), Grid(0.1, 4), Noise.of(0, range(2)))
    assert len(chain.grid.path(chain.denoiser.schedule).pairs) == 4
    value, grad = states_and_grad(Full(), chain)
    ours, ours_grad = states_and_grad(Checkpoint(0), chain)
    assert all(torch.equal(a, b) for a, b in zip(ours, value, strict=True))
    assert_same_gradient(ours_grad, grad)


def test_states_back_twice_and_changed_in_place(make_denoiser: MakeDenoiser) -> None:
    chain, x = rounds_of(make_denoiser, "ddim"), states().requires_grad_()
    loss = mixed(states_of(Checkpoint(0), chain, x))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)
    out = states_of(Checkpoint(0), chain, x)
    with torch.no_grad():
        out[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out[3].sum().backward()
    out = states_of(Checkpoint(0), chain, x)
    (grad,) = torch.autograd.grad(out[0].square().sum() + x.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_states_under_autocast(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 4, 2, dtype=torch.float32)
    grads = []
    for driver in (Full(), Checkpoint(0), partial(chain, 3, torch.float32)):
        leaf = states(torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = states_of(driver, chain, leaf)
        grads.append(torch.autograd.grad(mixed(out), leaf)[0])
    for grad in grads[1:]:
        assert_same_gradient(grad, grads[0], 1e-5)


def test_cut_graph_is_refused_between_states(make_denoiser: MakeDenoiser) -> None:
    chain = Rounds(make_denoiser(), Cut(), Grid(0.1, 2), Noise.of(0, range(2)))
    x = states().requires_grad_()
    for driver in (Full(), Checkpoint()):
        with pytest.raises(RuntimeError, match="cut the graph"):
            states_of(driver, chain, x)
    out = states_of(Checkpoint(0), chain, x)
    with pytest.raises(RuntimeError, match="cut the graph"):
        out[-1].sum().backward()


@pytest.mark.parametrize("driver", [Straight(), Surrogate(2), Blind(), Adjoint()], ids=repr)
def test_drivers_without_states_say_so(make_denoiser: MakeDenoiser, driver: Backprop) -> None:
    chain, x = rounds_of(make_denoiser, "ddpm small", 4), states().requires_grad_()
    with pytest.raises(ValueError, match=r"no gradient of the states .* take Checkpoint\(\)"):
        states_of(driver, chain, x)
    value = states_of(Full(), chain, x)
    for again in (states_of(driver, chain, x.detach()), no_grad_states(driver, chain, x)):
        assert all(torch.equal(a, b) for a, b in zip(again, value, strict=True))
        assert not any(state.requires_grad for state in again)


def no_grad_states(driver: Backprop, chain: Rounds, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return states_of(driver, chain, x)


def test_without_gradients_states_are_plain(
    make_denoiser: MakeDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 5)
    monkeypatch.setattr(checkpoint_module, "replay_states", None)
    monkeypatch.setattr(checkpoint_module, "step_bytes", None)
    out = no_grad_states(Checkpoint(), chain, states().requires_grad_())
    assert chain.denoiser.network.calls == len(out) == 5
    monkeypatch.undo()
    loose = states_of(Checkpoint(0), chain, states())  # wanted, but of nothing
    assert not any(state.requires_grad for state in loose)


# --- approximate drivers -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_straight(make_denoiser: MakeDenoiser, sampler: str) -> None:
    chain, x = rounds_of(make_denoiser, sampler), states().requires_grad_()
    out = run(Straight(), chain, x)
    assert torch.equal(out, value_and_grad(Full(), chain)[0])
    weight = torch.randn_like(x)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(grad, weight)
    assert saved_bytes(lambda: run(Straight(), chain, x), chain) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_surrogate(make_denoiser: MakeDenoiser, sampler: str) -> None:
    chain = rounds_of(make_denoiser, sampler, 6, 2)
    value, grad = value_and_grad(Full(), chain)
    coarse_value, coarse_grad = value_and_grad(Full(), coarse(chain, 2))
    assert not torch.equal(coarse_value, value)

    ours, ours_grad = value_and_grad(Surrogate(6), chain)
    assert torch.equal(ours, value)
    assert_same_gradient(ours_grad, grad)

    ours, ours_grad = value_and_grad(Surrogate(2), chain)
    assert torch.equal(ours, value)
    assert_same_gradient(ours_grad, coarse_grad)
    assert (ours_grad - grad).norm() / grad.norm() > 1e-3

    ours, ours_grad = value_and_grad(Surrogate(2, exact_value=False), chain)
    assert torch.equal(ours, coarse_value)
    assert_same_gradient(ours_grad, coarse_grad)


def test_coarse_chain_shares_the_noise_of_shared_times(make_denoiser: MakeDenoiser) -> None:
    """10 steps visit 99, 89, ...; 5 visit 99, 79, ...: the same z at 99, 79, ..."""
    drawn: dict[int, dict[Any, Tensor]] = {}

    class Watch(DDPM):
        def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Any) -> Tensor:
            drawn[steps][t] = z
            return super().step(denoiser, x, t, s, z)

    fine = Rounds(make_denoiser(), Watch(), Grid(0.1, 10), Noise.of(0, range(2)))
    for steps, chain in ((10, fine), (5, coarse(fine, 5))):
        drawn[steps] = {}
        run(Full(), chain, states())
    assert len(drawn[5]) == 5
    for t, z in drawn[5].items():
        assert torch.equal(z, drawn[10][t])


@pytest.mark.parametrize("exact_value", [True, False])
@pytest.mark.parametrize("driver", ["surrogate", "blind", "straight"])
def test_without_gradients_the_judge_sees_the_real_defence(
    make_denoiser: MakeDenoiser, driver: str, exact_value: bool
) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 6)
    value = value_and_grad(Full(), chain)[0]
    backprop = {
        "surrogate": Surrogate(2, exact_value),
        "blind": Blind(),
        "straight": Straight(),
    }[driver]
    assert torch.equal(run(backprop, chain, states()), value)
    with torch.no_grad():
        assert torch.equal(run(backprop, chain, states().requires_grad_()), value)


def test_blind(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small")
    value, grad = value_and_grad(Blind(), chain)
    assert torch.equal(value, states())
    weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value).sin()
    assert torch.equal(grad, weight)
    assert chain.denoiser.network.calls == 0


def test_exact_says_so() -> None:
    assert [d.exact for d in (Full(), Checkpoint(), Straight(), Surrogate(2), Blind())] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_links_are_pure(make_denoiser: MakeDenoiser) -> None:
    chain = rounds_of(make_denoiser, "ddpm small", 3, 2)
    links, x = chain.links(), states()
    assert len(links) == 6
    for link in links:
        assert torch.equal(*(first(link((x,), ())) for _ in range(2)))
    assert torch.equal(x, states())
    turns = [first(links[i]((x,), ())) for i in (0, 3)]
    assert not torch.equal(*turns)  # other noise in another round


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Checkpoint(-1), "memory_limit must be at least 0 bytes; got -1"),
        (lambda: Checkpoint(segment=0), "segment must be at least 1 step; got 0"),
        (lambda: Surrogate(0), "steps must be at least 1; got 0"),
        (lambda: DDPM("learned"), "variance must be small or large; got 'learned'"),
        (lambda: DDIM(1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: DDIM(float("nan")), r"eta must lie in \[0, 1\]"),
        (lambda: ProbabilityFlow("rk4"), "method must be euler or heun; got 'rk4'"),
    ],
)
def test_errors(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
