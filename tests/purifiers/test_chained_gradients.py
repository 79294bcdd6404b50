"""A loop that is no diffusion: guided descent with momentum, a counter and a context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import Backprop, Checkpoint, Full, Straight, Surrogate
from depure.diffusion.backprop import replay as replay_module
from depure.diffusion.backprop.checkpoint import link_bytes
from depure.diffusion.chain import Chain, Link, State, inner_gradient
from depure.evaluation.cost import counted
from depure.noise import Noise
from depure.purifiers import Chained


@dataclass(frozen=True)
class Settings:
    steps: int = 6
    rate: float = 0.3
    guidance: float = 0.5


class Descent(Chained):
    """State: image, momentum, a counter (int64); context: features of the image, a mask (bool)."""

    stages = ("descent",)

    def __init__(self, settings: Settings | None = None, backprop: Backprop | None = None) -> None:
        super().__init__(settings or Settings(), backprop)
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()).double()
        self.network.requires_grad_(False)
        self.check()
        self.eval()

    def chain(self, x: Tensor, noise: Noise) -> Chain:
        step = partial(self._step, noise)
        links = [
            Link(step, "guided" if i % 2 else "plain", 0, i) for i in range(self.settings.steps)
        ]
        start = (x, torch.zeros_like(x), torch.zeros(len(x), dtype=torch.int64))
        context = (self.network(x), x > 0.5)

        def shorter(steps: int) -> Chain:
            return self.with_settings(replace(self.settings, steps=steps)).chain(x, noise)

        return Chain(start, tuple(links), lambda s: s[0] + 0.1 * s[1], context, shorter)

    def _step(self, noise: Noise, state: State, context: State) -> State:
        x, momentum, count = state
        features, mask = context
        i = int(count[0])
        if i % 2:
            energy = lambda y: (self.network(y) - features).square().sum()  # noqa: E731
            (force,) = inner_gradient(energy, x)
        else:
            force = torch.sin(3.0 * x) * (self.network(x).mean(1, keepdim=True) + mask)
        momentum = 0.9 * momentum - self.settings.guidance * force
        x = x + self.settings.rate * momentum + 0.01 * noise.normal("descent", i, x)
        return x, momentum, count + 1


X = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = Noise.of(0, range(2))


def gradient(purifier: Descent, states: bool = False) -> tuple[Tensor, Tensor]:
    x = X.clone().requires_grad_()
    if states:
        out = torch.stack([s[0].pow(3) + s[1] for s in purifier.states(x, NOISE)])
    else:
        out = purifier(x, NOISE)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).sin()
    return out.detach(), torch.autograd.grad((out * weight).sum(), x)[0]


def keeping(links: int, segment: int) -> Checkpoint:
    sizes = link_bytes(Descent().prepared(X.clone().requires_grad_(), NOISE))
    kept = sum(sizes[len(sizes) - links :])
    return Checkpoint(kept + max(sizes) if links else 0, segment)


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the replay fell back on another checkpointing")

    monkeypatch.setattr(replay_module, "_checkpointed", fail)


@pytest.mark.parametrize("states", [False, True], ids=["end", "states"])
@pytest.mark.parametrize("segment", [1, 3])
@pytest.mark.parametrize("links", [0, 3, 6])
def test_equals_plain_autograd(no_fallback: None, links: int, segment: int, states: bool) -> None:
    driver = keeping(links, segment)
    purifier = Descent(backprop=driver)
    assert driver.kept(purifier.prepared(X.clone().requires_grad_(), NOISE), X) == links
    value, wanted = gradient(Descent(backprop=Full()), states)
    found, grad = gradient(purifier, states)
    assert torch.equal(found, value)
    assert (grad - wanted).norm() / wanted.norm() < 1e-10


def test_finite_differences() -> None:
    purifier, h = Descent(backprop=Checkpoint(0)), 1e-6
    v = torch.randn(X.shape, generator=torch.Generator().manual_seed(2), dtype=X.dtype)
    _, grad = gradient(purifier)
    with torch.no_grad():
        ahead, behind = (purifier(X + s * h * v, NOISE) for s in (1, -1))
    weight = torch.linspace(-1, 2, X.numel(), dtype=X.dtype).view_as(X).sin()
    numeric = ((ahead - behind) * weight).sum() / (2 * h)
    assert (grad * v).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


def test_the_context_is_part_of_the_gradient() -> None:
    """What a constant reference would hide."""
    x = X.clone().requires_grad_()
    chain = Descent().prepared(x, NOISE)
    constant = replace(chain, context=tuple(c.detach() for c in chain.context))
    grads = [torch.autograd.grad(Checkpoint(0).run(c, x).sum(), x)[0] for c in (chain, constant)]
    assert (grads[0] - grads[1]).norm() > 0.01 * grads[0].norm()


def test_weights_that_require_gradients_are_differentiated_too() -> None:
    found = []
    for driver in (Full(), Checkpoint(0), Checkpoint(0, 3)):
        purifier, x = Descent(backprop=driver), X.clone().requires_grad_()
        weights = list(purifier.network.requires_grad_(True).parameters())
        found.append(torch.autograd.grad(purifier(x, NOISE).square().sum(), [x, *weights]))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert (a - b).norm() / b.norm() < 1e-10


class Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved(run: Callable[[], Tensor]) -> int:
    """Bytes that the graph of the result holds; what an inner graph held is gone by then."""
    boxes: WeakSet[Box] = WeakSet()

    def pack(tensor: Tensor) -> Box:
        box = Box(tensor)
        boxes.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        out = run()
    assert out.requires_grad
    storages = {b.tensor.untyped_storage().data_ptr(): b.tensor.untyped_storage() for b in boxes}
    return sum(s.nbytes() for s in storages.values())


def test_memory_grows_by_states_alone(no_fallback: None) -> None:
    def held(steps: int, driver: Backprop) -> int:
        purifier = Descent(Settings(steps), driver)
        return saved(lambda: purifier(X.clone().requires_grad_(), NOISE))

    state = 2 * X.numel() * X.element_size() + 2 * 8
    assert held(20, Checkpoint(0)) - held(10, Checkpoint(0)) <= 10 * state
    assert held(20, Full()) - held(10, Full()) > 40 * state


def test_memory_is_probed_once_a_kind() -> None:
    purifier, calls = Descent(), []
    purifier.network.register_forward_pre_hook(lambda *_: calls.append(1))
    chain = purifier.prepared(X.clone().requires_grad_(), NOISE)
    calls.clear()
    sizes = link_bytes(chain)
    assert len(set(sizes)) == 2
    assert len(calls) == 3  # a probe a kind, and the way to the second
    assert link_bytes(chain) == sizes
    assert len(calls) == 3


@pytest.mark.parametrize(("driver", "again"), [(Full(), 0), (Checkpoint(0), 6)])
def test_calls_of_its_parts_are_its_cost(driver: Backprop, again: int) -> None:
    """One call a link and one for the features, of two images; a replay calls every link again."""
    model = Defended(Descent(backprop=driver), nn.Flatten())
    with counted(model) as cost:
        model(X.clone().requires_grad_(), NOISE).sum().backward()
    assert (cost.purifier_calls, cost.recomputed_calls) == (2 * 7, 2 * again)


def test_settings_and_driver_change_in_a_copy() -> None:
    purifier = Descent()
    other = purifier.with_settings(replace(purifier.settings, steps=2))
    assert (purifier.settings.steps, other.settings.steps) == (6, 2)
    assert other.network is purifier.network
    other.extra = nn.Identity()
    assert not hasattr(purifier, "extra")
    straight = purifier.with_backprop(Straight())
    assert (purifier.exact, straight.exact) == (True, False)
    with pytest.raises(ValueError, match="settings must be Settings"):
        purifier.with_settings("steps=2")
    with pytest.raises(ValueError, match="must be a Backprop object"):
        purifier.with_backprop("full")


def test_surrogate_takes_the_shorter_chain() -> None:
    _, wanted = gradient(Descent(Settings(2), Full()))
    value, grad = gradient(Descent(backprop=Surrogate(2)))
    assert torch.equal(value, gradient(Descent())[0])
    assert (grad - wanted).norm() / wanted.norm() < 1e-10
    x = X.clone().requires_grad_()
    chain = replace(Descent().prepared(x, NOISE), shorter=None)
    with pytest.raises(ValueError, match="has no `shorter`"):
        Surrogate(2).run(chain, x)


def test_states_of_no_noising_are_no_waypoints() -> None:
    model = Defended(Descent(), nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double())
    with pytest.raises(ValueError, match="passes through no states of a reverse process"):
        model.trace(X, NOISE)


def test_inner_gradient_sees_what_a_function_closes_over() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    (found,) = inner_gradient(lambda x: weight * x.pow(3), torch.tensor([1.0]))
    assert torch.autograd.grad(found.sum(), weight)[0] == 3.0
    (loose,) = inner_gradient(lambda x: x.pow(3), torch.tensor([1.0]))
    assert not loose.requires_grad
    x = torch.tensor([1.0], requires_grad=True)
    (found,) = inner_gradient(lambda x: x.pow(3), x)
    assert torch.autograd.grad(found.sum(), x)[0] == 6.0
    with torch.no_grad():
        assert not inner_gradient(lambda x: x.pow(3), x)[0].requires_grad


def test_a_link_that_returns_no_tuple_is_named() -> None:
    chain = Chain((X,), (Link(lambda s, c: s[0], "bare"),), lambda s: s[0])
    with pytest.raises(TypeError, match="kind 'bare' returned a Tensor"):
        Full().run(chain, X)
