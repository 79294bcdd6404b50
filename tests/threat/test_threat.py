"""What an attacker knows of the defence's noise."""

import pytest
import torch

from depure.noise import Noise
from depure.threat import Linf, Threat


def test_knows_must_be_a_tuple():
    with pytest.raises(ValueError, match="tuple of stage names"):
        Threat(Linf(), knows="forward")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 0}, "pool must be at least 1"),
        ({"mix": 1.5}, r"mix must lie in \[0, 1\]"),
        ({"pool": 4, "mix": 0.5}, "exclude each other"),
        ({"knows": (), "pool": 4}, "act on known noise"),
        ({"knows": (), "mix": 0.5}, "act on known noise"),
    ],
)
def test_bad_knowledge(settings, message):
    with pytest.raises(ValueError, match=message):
        Threat(Linf(), **{"knows": ("forward",), **settings})


def test_what_is_held():
    x = torch.zeros(3, 1, 8, 8)
    noise = Noise.of(0, range(3))

    def draws(*settings):
        held = Threat(Linf(), ("forward",), *settings).hold(noise)
        found = [held.fold("judge", i).normal("forward", 0, x) for i in range(40)]
        return [row.numpy().tobytes() for row in torch.stack(found)[:, 0]], found

    assert len(set(draws()[0])) == 1
    assert len(set(draws(4)[0])) == 4  # 40 draws of a pool of 4 see each with probability 0.99998
    mixed, fresh = draws(1, 0.5)[1], draws(1, 1.0)[1]
    locked = draws()[1][0]
    torch.testing.assert_close(mixed[7], 0.75**0.5 * locked + 0.5 * fresh[7])
    assert torch.equal(fresh[7], noise.fold("judge", 7).normal("forward", 0, x))
    assert torch.equal(draws(1, 0.0)[1][0], locked)


def test_a_pool_over_two_stages_holds_so_many_draws_in_all():
    x = torch.zeros(1, 1, 2, 2)
    held = Threat(Linf(), ("reverse", "forward"), pool=3).hold(Noise.of(0, [7]))
    found = set()
    for i in range(60):
        noise = held.fold("judge", i)
        found.add(tuple(float(noise.normal(s, 0, x).sum()) for s in ("forward", "reverse")))
    assert len(found) == 3
