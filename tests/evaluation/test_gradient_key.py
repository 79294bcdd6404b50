"""A cached gradient check is tied to the code, the settings and the rows that it was made with."""

import inspect

from torch import nn

from depure.defences import Defended
from depure.evaluation.gradient_check.key import key_of
from depure.purifiers import Identity


def test_the_key_follows_code_settings_and_rows(monkeypatch):
    model = Defended(Identity(), nn.Flatten())
    keys = [key_of(model, {"a": 1}, 4), key_of(model, {"a": 2}, 4), key_of(model, {"a": 1}, 8)]
    assert keys[0] == key_of(Defended(Identity(), nn.Flatten()), {"a": 1}, 4)
    monkeypatch.setattr(inspect, "getsource", lambda kind: f"{kind} with another line")
    keys.append(key_of(model, {"a": 1}, 4))
    assert len(set(keys)) == 4
