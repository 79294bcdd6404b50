import pytest
import torch

from depure.noise import Noise
from depure.training import Flip, Shift


def test_shift_moves_whole_images_by_every_offset():
    image = torch.zeros(1, 5, 5)
    image[0, 2, 2] = 1.0
    x = torch.cat([image, 2 * image]).repeat(500, 1, 1, 1)
    shifted = Shift(1)(x, Noise.of(0, range(500)))
    assert shifted.shape == x.shape
    assert torch.equal(shifted.sum((2, 3)), x.sum((2, 3)))
    places = shifted[:, 0].flatten(1).argmax(1)
    found, counts = places.unique(return_counts=True)
    assert found.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert counts.min() > 30  # of 500 / 9
    assert torch.equal(shifted[:, 1], 2 * shifted[:, 0])


def test_shift_fills_with_black_and_zero_is_the_identity():
    x, noise = torch.ones(200, 2, 4, 4), Noise.of(0, range(200))
    assert Shift(1)(x, noise)[:, 0, 0, 0].unique().tolist() == [0.0, 1.0]
    assert torch.equal(Shift(0)(x, noise), x)
    with pytest.raises(ValueError, match="pixels must not be negative; got -1"):
        Shift(-1)


def test_flip_mirrors_half_of_the_images():
    x = torch.arange(4.0).repeat(1000, 1, 3, 1) / 4
    flipped = Flip()(x, Noise.of(0, range(1000)))
    mirrored = flipped[:, 0, 0, 0] > 0
    assert 440 < int(mirrored.sum()) < 560
    assert torch.equal(flipped[mirrored], x[mirrored].flip(3))
    assert torch.equal(flipped[~mirrored], x[~mirrored])


@pytest.mark.parametrize("change", [Shift(2), Flip()], ids=str)
def test_an_image_is_changed_alike_whatever_stands_beside_it(change):
    x = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    noise = Noise.of(3, range(20))
    assert torch.equal(change(x, noise)[7:9], change(x[7:9], noise[7:9]))
