"""Settings as plain data."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from depure import DDIM, PGD, DiffPure, Linf, Surrogate, load_denoiser
from depure.purifiers import BPDA, Identity
from depure.records import came, record_of


@dataclass(frozen=True)
class Part:
    size: int
    inner: object = None
    speed: int = field(default=3, repr=False)


def test_a_dataclass_is_its_name_and_what_decides():
    record = record_of(Part(2, (Part(1), None, "a", 0.5, True)))
    assert record == {
        "name": "Part",
        "size": 2,
        "inner": [{"name": "Part", "size": 1, "inner": None}, None, "a", 0.5, True],
    }
    assert record_of(torch.float32) == "torch.float32"
    assert record_of(Part) == repr(Part)


def test_purifiers_are_recorded_as_data():
    purifier = DiffPure(load_denoiser("digits"), DDIM(0.5), steps=3, backprop=Surrogate(2))
    record = purifier.record()
    assert json.loads(json.dumps(record)) == record
    assert record["name"] == "DiffPure"
    assert record["sampler"] == {"name": "DDIM", "eta": 0.5, "clip_x0": False}
    assert record["backprop"] == {"name": "Surrogate", "steps": 2, "exact_value": True}
    assert (record["t_star"], record["steps"], record["rounds"]) == (0.1, 3, 1)
    assert BPDA(purifier).record() == {"name": "BPDA", "purifier": record}
    assert Identity().record() == {"name": "Identity"}


def test_what_came_has_no_address():
    assert came(object()) == "object"
    assert came([1.5, "a"]) == "[1.5, 'a']"
    assert came("x" * 99) == repr("x" * 99)[:60]
    for make in (lambda: PGD(step_size=object()), lambda: Linf(object())):
        with pytest.raises(ValueError, match=r"got object$"):
            make()
