"""A cached gradient check is tied to the code, the settings and the rows that it was made with."""

import dataclasses
import inspect

import torch
from torch import nn

from depure.data import Images
from depure.defences import Defended
from depure.evaluation.gradient_check.key import key_of
from depure.purifiers import Identity

IMAGES = Images(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2), ("a", "b"), "toy")
RUN = {"model": {"weights": "a"}, "threat": {"ball": "b"}, "seed": 0, "attack": "c", "draws": 9}


def key(described=RUN, images=IMAGES, chunk=4, short=False):
    return key_of(Defended(Identity(), nn.Flatten()), described, images, chunk, short=short)


def test_the_key_follows_what_decides_a_check(monkeypatch):
    keys = [
        key(),
        *(key({**RUN, name: "other"}) for name in ("model", "threat", "seed")),
        key(chunk=8),
        key(short=True),
        key(images=dataclasses.replace(IMAGES, x=IMAGES.x / 2)),
        key(images=dataclasses.replace(IMAGES, y=IMAGES.y.flip(0))),
        key(images=dataclasses.replace(IMAGES, index=IMAGES.index + 1)),
    ]
    assert keys[0] == key({**RUN, "attack": "another", "draws": 1})  # runs may share it
    monkeypatch.setattr(inspect, "getsource", lambda kind: f"{kind} with another line")
    assert len({*keys, key()}) == len(keys) + 1
