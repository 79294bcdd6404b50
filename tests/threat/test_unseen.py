"""Threats that bound no norm of the pixel change."""

import json

import torch
from torch import nn

from depure.attacks.unseen.perceptual import PPGD
from depure.evaluation.record import settings_of
from depure.networks.features.distance import FeatureDistance
from depure.threat import Flow, Perceptual

DOUBLE = torch.float64


def pictures(n=3, shape=(2, 6, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


def network(seed=0, channels=2):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 4, 3, stride=2),
        nn.Softplus(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5
    return net.double().eval()


def test_projection():
    x = pictures(20)
    ball = Perceptual(FeatureDistance(network()), 0.08)
    far = (x + 0.8 * (pictures(20, seed=1) - 0.5)).clamp(0, 1)
    assert (ball.distance_of(far, x) > 0.08).sum() > 10
    near = ball.project(far, x)
    assert (ball.distance_of(near, x) <= 0.08).all()
    inside = ball.distance_of(far, x) <= 0.08
    assert torch.equal(near[inside], far[inside])
    assert (ball.distance_of(near, x)[~inside] > 0.05).all()  # and not back at the image
    line = ball._on_the_line(far, x, ball.metric.features(x))
    assert (ball.distance_of(line, x) <= 0.08).all()
    assert (ball.distance_of(line, x)[~inside] > 0.0799).all()
    assert not ball.contains(far, x)[~inside].any()
    assert ball.contains(near, x).all()
    assert ball.contains(near - 2.0, x).logical_not().all()


def test_the_record_is_plain_and_tells_networks_apart():
    ball = Perceptual(FeatureDistance(network()), 0.2)
    data = json.loads(json.dumps(settings_of(ball)))
    assert data["eps"] == 0.2
    assert "layers=('0', '2')" in data["features"]
    other = Perceptual(FeatureDistance(network(1)), 0.2)
    assert settings_of(other) != settings_of(ball)
    assert ball == Perceptual(FeatureDistance(network()), 0.2)
    json.dumps(settings_of(PPGD()))


def test_painting_is_no_flow():
    x = pictures(3, (1, 6, 6)) * 0.8
    x_adv = x.clone()
    x_adv[1, 0, 2, 2] = 0.9
    x_adv[2, 0, 0, 0] = -0.1
    assert Flow(0.2).contains(x_adv, x).tolist() == [True, False, False]
