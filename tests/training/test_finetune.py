"""The fine-tuning loop: exact resume, data order, honest failure."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from depure.data import Images
from depure.diffusion import VPSDE, VPDiscrete
from depure.training import ADDT, ContinuousVP, DiscreteVP, Plan, fine_tune
from depure.training.finetune import batch_rows

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


FAMILIES = [DiscreteVP(VPDiscrete.linear()), ContinuousVP(VPSDE())]


class Killed(Exception):
    pass


@pytest.mark.parametrize("family", FAMILIES, ids=["ddpm", "vpsde"])
@pytest.mark.parametrize("perturbation", ["rbgm", "pgd", "none"])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_killed_at_any_update_and_resumed_is_bit_equal(
    images, classifier, tmp_path, family, perturbation, at
):
    settings = ADDT(perturbation=perturbation, iterations=2)
    whole = Net()
    fine_tune(whole, classifier, family, images, settings, PLAN)

    def kill(update, total, loss):
        if update == at:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    arguments = (classifier, family, images, settings, PLAN)
    with pytest.raises(Killed):
        fine_tune(Net(), *arguments, checkpoint=path, progress=kill)
    torch.manual_seed(at)  # the global generator's state must not matter
    resumed, seen = Net(), []
    fine_tune(resumed, *arguments, checkpoint=path, progress=lambda update, *_: seen.append(update))
    assert seen == list(range(at // 2 * 2 + 1, 8))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not path.exists()
    assert not any(p.requires_grad for p in resumed.parameters())
    assert not resumed.training


def test_it_trains_and_keeps_an_average(images, classifier):
    losses = []
    network = Net()
    before = [p.clone() for p in network.parameters()]
    plan = replace(PLAN, updates=150, batch=12, dropout=0.0)
    fine_tune(
        network, classifier, FAMILIES[0], images, ADDT(perturbation="none"), plan,
        progress=lambda update, total, loss: losses.append(loss),
    )  # fmt: skip
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_every_image_once_an_epoch_and_nothing_left_over():
    rows = torch.cat([batch_rows(12, 5, update, seed=3) for update in range(1, 13)])
    for epoch in rows.view(5, 12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(rows[:12], rows[12:24])
    assert not torch.equal(batch_rows(12, 5, 1, seed=4), rows[:5])


def test_another_configuration_and_a_damaged_checkpoint(images, classifier, tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    def kill(update, total, loss):
        if update == 4:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(
            Net(), classifier, FAMILIES[0], images, ADDT(), PLAN, checkpoint=path, progress=kill
        )
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another configuration"):
        fine_tune(Net(), classifier, FAMILIES[0], images, ADDT(unit=0.1), PLAN, checkpoint=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:200])
    with pytest.raises(ValueError, match=r"is damaged .*: delete it and train again"):
        fine_tune(Net(), classifier, FAMILIES[0], images, ADDT(), PLAN, checkpoint=path)


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(images, classifier, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    network = Net()

    def poison(update, total, loss):
        if update == 4:
            network.last.bias.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="at update 5"):
        fine_tune(
            network, None, FAMILIES[0], images, ADDT(perturbation="none"), PLAN,
            checkpoint=path, progress=poison,
        )  # fmt: skip
    resumed = Net()
    fine_tune(resumed, None, FAMILIES[0], images, ADDT(perturbation="none"), PLAN, checkpoint=path)
    assert all(p.isfinite().all() for p in resumed.parameters())


@pytest.mark.parametrize("change", [{"updates": 0}, {"lr": 0.0}, {"dropout": 1.0}])
def test_bad_plans(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PLAN, **change)
