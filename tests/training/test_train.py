"""The training loop: exact resume, data order, honest failure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from depure import weights
from depure.data import Images
from depure.diffusion import VPSDE, VPDiscrete
from depure.noise import Noise
from depure.threat import Linf
from depure.training import (
    ADDT,
    TRADES,
    ContinuousProcess,
    CrossEntropy,
    Denoising,
    DiscreteProcess,
    EDMProcess,
    Flip,
    PGDTraining,
    Plan,
    Shift,
    train,
)
from depure.training.checkpoint import earlier
from depure.training.loop import warm_cosine
from depure.training.plan import batch_rows

PLAN = Plan(updates=7, batch=5, lr=1e-3, save_every=2, max_decay=0.9)


class Net(nn.Module):
    """A tiny denoiser with dropout, whose randomness a resume must repeat."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.0)
        self.last = nn.Conv2d(4, 1, 3, padding=1)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)

    def forward(self, x, labels):
        scale = 1 + labels.to(x.dtype).view(-1, 1, 1, 1) / 1000
        return self.last(self.dropout(torch.nn.functional.silu(self.first(x) * scale)))


@pytest.fixture
def images():
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Images(x, torch.arange(12) % 3, torch.arange(12), ("a", "b", "c"), "toy")


@pytest.fixture
def classifier():
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    for p in head.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return head.eval().requires_grad_(False)


class Head(nn.Module):
    """A tiny classifier with batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(48, 3)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))

    def forward(self, x):
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))).flatten(1))


PROCESSES = {
    "ddpm": DiscreteProcess(VPDiscrete.linear()),
    "vpsde": ContinuousProcess(VPSDE()),
    "edm": EDMProcess(),
}


def denoising(process="ddpm", classifier=None, perturbation="none", **settings):
    if perturbation == "none":
        return Denoising(PROCESSES[process])
    return ADDT(PROCESSES[process], classifier, perturbation, **settings)


def cases():
    for process in PROCESSES:
        for kind in ("rbgm", "pgd", "none"):
            yield f"{process}-{kind}", Net, (process, {"perturbation": kind, "iterations": 2})
    yield "plain classifier", Head, CrossEntropy()
    yield "PGD-AT", Head, PGDTraining(Linf(0.1), 2)
    yield "TRADES", Head, TRADES(Linf(0.1), steps=2)


CASES = list(cases())


class Killed(Exception):
    pass


def kill_at(at):
    def watch(update, updates, loss, average):
        if update == at:
            raise Killed

    return watch


class Notes:
    """A watch that remembers every loss, but for that of the update it is killed at."""

    def __init__(self, at=0):
        self.at, self.losses = at, {}

    def __call__(self, update, updates, loss, average):
        if update == self.at:
            raise Killed
        self.losses[str(update)] = loss

    def memory(self):
        return {"losses": dict(self.losses)}

    def recall(self, memory):
        self.losses = dict(memory["losses"])


@pytest.mark.parametrize("at", [1, 4, 5, 7])
def test_what_a_watch_remembers_goes_on(images, tmp_path, at):
    """At 4 and 7 it is killed between the checkpoint and the watch, which is called once more."""
    whole, path = Notes(), tmp_path / "checkpoint.safetensors"
    train(Head(), CrossEntropy(), images, PLAN, watch=whole)
    assert len(whole.losses) == 7
    with pytest.raises(Killed):
        train(Head(), CrossEntropy(), images, PLAN, checkpoint=path, watch=Notes(at))
    resumed = Notes()
    train(Head(), CrossEntropy(), images, PLAN, checkpoint=path, watch=resumed)
    assert resumed.losses == whole.losses


@pytest.mark.parametrize(("make", "what"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("at", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 5])
def test_killed_at_any_update_and_resumed_is_bit_equal(
    images, classifier, tmp_path, make, what, at
):
    if isinstance(what, tuple):
        what = denoising(what[0], classifier, **what[1])
    plan, change = replace(PLAN, rate="cosine"), (Shift(1), Flip())
    whole = make()
    train(whole, what, images, plan, augment=change)

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(make(), what, images, plan, augment=change, checkpoint=path, watch=kill_at(at))
    torch.manual_seed(at)  # the global generator's state must not matter
    resumed, seen = make(), []
    train(
        resumed, what, images, plan, augment=change, checkpoint=path,
        watch=lambda update, *_: seen.append(update),
    )  # fmt: skip
    assert seen == list(range(max(1, at // 2 * 2), 8))  # that of the checkpoint once more
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert path.exists()  # until what was trained is saved
    again, seen = make(), []
    train(
        again, what, images, plan, augment=change, checkpoint=path,
        watch=lambda update, *_: seen.append(update),
    )  # fmt: skip
    assert seen == [7]
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    assert not any(p.requires_grad for p in resumed.parameters())
    assert not any(part.training for part in resumed.modules())


def test_seeds_fix_everything_and_touch_no_global_state(images):
    results = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        network = Net()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        train(network, denoising(perturbation="none"), images, replace(PLAN, seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        results.append(network.last.weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_it_trains_and_keeps_an_average(images):
    losses, last = [], []
    network = Net()

    def watch(update, updates, loss, average):
        losses.append(loss)
        last[:] = [network.last.weight.detach().clone(), average.average["last.weight"].clone()]

    plan = replace(PLAN, updates=150, batch=12, dropout=0.0)
    train(network, denoising(perturbation="none"), images, plan, watch=watch)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    raw, average = last
    assert torch.equal(network.last.weight, average)
    assert not torch.equal(raw, average)


@pytest.mark.parametrize(
    "objective", [CrossEntropy(), PGDTraining(Linf(0.05), 3), TRADES(Linf(0.05), steps=3)], ids=str
)
def test_classifiers_learn(images, objective):
    network, losses = Head(), []
    plan = replace(PLAN, updates=80, batch=12, dropout=None, lr=1e-2)
    train(network, objective, images, plan, watch=lambda u, n, loss, a: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert network.dropout.p == 0.2  # None leaves it alone


def test_gradients_are_clipped_and_the_rate_follows_the_plan(images):
    norms, rates = [], []

    def record(optimizer, *_):
        group = optimizer.param_groups[0]
        norms.append(float(torch.cat([p.grad.flatten() for p in group["params"]]).norm()))
        rates.append(group["lr"])

    network = Net()
    network.first.weight.data.mul_(1000)
    handle = register_optimizer_step_pre_hook(record)
    try:
        train(network, denoising(perturbation="none"), images, replace(PLAN, rate="cosine"))
    finally:
        handle.remove()
    assert norms == pytest.approx([1.0] * 7, abs=1e-4)
    assert rates == pytest.approx([1e-3 * warm_cosine(i, 7) for i in range(7)])


def test_images_reach_the_objective_augmented_and_with_their_own_noise(images):
    seen = []

    class Look(CrossEntropy):
        def __call__(self, network, batch, noise):
            seen.append((batch, noise))
            return super().__call__(network, batch, noise)

    invert = lambda x, noise: 1.0 - x  # noqa: E731
    train(Head(), Look(), images, PLAN, augment=(invert,))
    batch, noise = seen[2]
    rows = batch_rows(12, 5, 3, PLAN.seed)
    assert torch.equal(batch.x, 1.0 - images.x[rows])
    assert torch.equal(noise.keys, Noise.of(PLAN.seed, images.index[rows]).fold("update", 3).keys)


def test_every_image_once_an_epoch_and_nothing_left_over():
    rows = torch.cat([batch_rows(12, 5, update, seed=3) for update in range(1, 13)])
    for epoch in rows.view(5, 12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(rows[:12], rows[12:24])
    assert not torch.equal(batch_rows(12, 5, 1, seed=4), rows[:5])


def test_another_configuration_and_a_damaged_checkpoint(images, classifier, tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    def run(what, plan=PLAN, data=images, change=(), watch=None):
        train(Net(), what, data, plan, augment=change, checkpoint=path, watch=watch)

    with pytest.raises(Killed):
        run(denoising(classifier=classifier, perturbation="rbgm"), watch=kill_at(4))
    before = path.read_bytes()
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    changes = {
        "objective": {
            "what": denoising(classifier=classifier, perturbation="rbgm", lambda_unit=0.1)
        },
        "plan": {"plan": replace(PLAN, lr=1.0)},
        "images": {"data": images[:11]},
        "augment": {"change": (Flip(),)},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=rf"another configuration \(another {name}\)"):
            run(**{"what": denoising(classifier=classifier, perturbation="rbgm"), **change})
    with pytest.raises(ValueError, match="another objective"):  # the guide's weights count
        run(denoising(classifier=other, perturbation="rbgm"))
    assert path.read_bytes() == before
    earlier(path).unlink()
    path.write_bytes(before[:200])
    with pytest.raises(ValueError, match=r"is damaged .*: delete it and train again"):
        run(denoising(classifier=classifier, perturbation="rbgm"))


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(images, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    network = Net()

    def poison(update, updates, loss, average):
        if update == 4:
            network.last.bias.data.fill_(float("nan"))

    plain = denoising(perturbation="none")
    with pytest.raises(FloatingPointError, match="the loss is nan at update 5"):
        train(network, plain, images, PLAN, checkpoint=path, watch=poison)
    resumed = Net()
    train(resumed, plain, images, PLAN, checkpoint=path)
    assert all(p.isfinite().all() for p in resumed.parameters())


def test_a_full_disk_keeps_the_checkpoint_before(images, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    real, calls = weights.save_file, []

    def full(tensors, name, facts):
        calls.append(name)
        if len(calls) == 2:
            Path(name).write_bytes(b"half")
            raise SafetensorError("No space left on device")
        real(tensors, name, facts)

    monkeypatch.setattr(weights, "save_file", full)
    plain = denoising(perturbation="none")
    with pytest.raises(OSError, match=r"cannot write .*No space left.*make room"):
        train(Net(), plain, images, PLAN, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    seen = []
    train(Net(), plain, images, PLAN, checkpoint=path, watch=lambda u, *_: seen.append(u))
    assert seen == [2, 3, 4, 5, 6, 7]


def test_unusable_input(images):
    with pytest.raises(ValueError, match="images must be above 0; got 0"):
        train(Net(), denoising(perturbation="none"), images[:0], PLAN)
    with pytest.raises(ValueError, match="Identity has no parameters"):
        train(nn.Identity(), CrossEntropy(), images, PLAN)
    few = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"K above the largest label 2; got \(5, 2\)"):
        train(few, CrossEntropy(), images, PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"updates": 0},
        {"lr": 0.0},
        {"lr": 1e99},
        {"weight_decay": -1.0},
        {"dropout": 1.0},
        {"rate": "fast"},
    ],
)
def test_bad_plans(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PLAN, **change)
