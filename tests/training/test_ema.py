from __future__ import annotations

import pytest
import torch
from torch import nn

from depure.training import EMA


def constant(value: float) -> nn.Linear:
    network = nn.Linear(2, 2)
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(value)
    return network


def test_the_first_update_keeps_some_of_the_first_weights() -> None:
    ema = EMA(constant(1.0))
    ema.update(constant(0.0))
    assert float(ema.average["bias"][0]) == pytest.approx(2 / 11)


def test_known_average() -> None:
    ema = EMA(constant(1.0), max_decay=0.3)
    expected = 1.0
    for k, value in enumerate((0.0, 5.0, -2.0, 1.0, 7.0), start=1):
        decay = min(0.3, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value
        ema.update(constant(value))
    assert float(ema.average["weight"][1, 1]) == pytest.approx(expected)


def test_decay_warms_up_to_its_maximum() -> None:
    ema = EMA(constant(0.0), max_decay=0.9)
    decays = [ema.decay(k) for k in range(1, 200)]
    assert decays == sorted(decays)
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.9


def test_copy_to_gives_the_average_and_is_no_alias() -> None:
    ema, network = EMA(constant(1.0)), constant(0.0)
    ema.update(network)
    ema.copy_to(network)
    assert network.weight[0, 0].item() == pytest.approx(2 / 11)
    with torch.no_grad():
        network.weight.fill_(9.0)
    assert float(ema.average["weight"][0, 0]) == pytest.approx(2 / 11)


def test_the_network_given_first_is_not_kept() -> None:
    network = constant(1.0)
    ema = EMA(network)
    with torch.no_grad():
        network.weight.fill_(9.0)
    assert float(ema.average["weight"][0, 0]) == 1.0
    assert not ema.average["weight"].requires_grad


def test_buffers_are_copied_not_averaged() -> None:
    network = nn.BatchNorm1d(2)
    ema = EMA(network)
    network(torch.full((4, 2), 3.0))
    ema.update(network)
    assert torch.equal(ema.average["running_mean"], network.running_mean)
    assert int(ema.average["num_batches_tracked"]) == 1


@pytest.mark.parametrize("max_decay", [-0.1, 1.0, 1.5])
def test_max_decay_out_of_range(max_decay: float) -> None:
    with pytest.raises(ValueError, match=r"max_decay must lie in \[0, 1\)"):
        EMA(constant(0.0), max_decay)
