from __future__ import annotations

import pytest
import torch

from depure.data import Images
from depure.data.images import check_outputs, occurrence, stratified


def make(n: int = 30, classes: int = 3, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(
        x=torch.rand(n, 1, 4, 4, generator=generator),
        y=torch.arange(n) % classes,
        index=torch.arange(n) * 10,
        classes=tuple("abcdefghij"[:classes]),
        name="made",
    )


def test_subsets_keep_their_indices() -> None:
    images = make()
    for rows in (slice(3, 9, 2), [3, 5, 7], torch.tensor([3, 5, 7])):
        subset = images[rows]
        assert subset.index.tolist() == [30, 50, 70]
        assert torch.equal(subset.x, images.x[3:9:2])
        assert torch.equal(subset.y, images.y[3:9:2])
        assert (subset.classes, subset.name) == (images.classes, images.name)
    assert images[[7, 3]].index.tolist() == [70, 30]
    assert images[images.y == 1].index.tolist() == list(range(10, 300, 30))


def test_subsets_may_be_empty_and_keep_their_shape() -> None:
    for rows in (slice(0, 0), [], torch.zeros(30, dtype=torch.bool)):
        assert make()[rows].x.shape == (0, 1, 4, 4)


def test_a_single_row_is_refused() -> None:
    with pytest.raises(TypeError, match=r"use images\[2:3\]"):
        make()[2]  # type: ignore[index]


def test_repr_is_a_record_not_the_pixels() -> None:
    assert repr(make()) == "Images('made': 30 images of 1x4x4, 3 classes)"


@pytest.mark.parametrize("n", [1, 2, 3, 7, 29, 30])
def test_sample_is_balanced_sorted_and_without_repeats(n: int) -> None:
    sample = make().sample(n, seed=4)
    counts = sample.y.bincount(minlength=3)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(sample.index, sample.index.unique())
    assert len(sample) == n


def test_sample_stays_balanced_when_a_class_is_short() -> None:
    y = torch.tensor([0] * 2 + [1] * 20 + [2] * 20)
    assert y[stratified(y, 12)].bincount().tolist() == [2, 5, 5]


def test_sample_hangs_on_the_seed_only() -> None:
    images = make()
    same = images.sample(9, seed=1)
    assert torch.equal(same.index, images.sample(9, seed=1).index)
    assert not torch.equal(same.index, images.sample(9, seed=2).index)
    shuffled = images[torch.randperm(30, generator=torch.Generator().manual_seed(9))]
    assert torch.equal(same.index, shuffled.sample(9, seed=1).index)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    images.sample(9)
    assert torch.equal(before, torch.get_rng_state())


def test_a_larger_sample_contains_the_smaller() -> None:
    small, large = make().sample(7).index.tolist(), make().sample(8).index.tolist()
    assert set(small) < set(large)


@pytest.mark.parametrize("n", [-1, 0, 31])
def test_sample_size_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match=f"cannot pick {n} of 30 images: ask for 1 to 30"):
        make().sample(n)


def test_occurrence_counts_within_each_label() -> None:
    assert occurrence(torch.tensor([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


BAD_PIXELS = [
    (torch.full((2, 1, 4, 4), -1.0), r"\[0, 1\]; got min -1.0: pass \(x \+ 1\) / 2"),
    (torch.full((2, 1, 4, 4), 255.0), r"\[0, 1\]; got max 255.0: pass x / 255"),
    (torch.full((2, 1, 4, 4), 1.00001), r"got max 1.0000\d*: pass x.clamp\(0, 1\)"),
    (torch.full((2, 1, 4, 4), -2.5), "got min -2.5: undo the normalisation"),
    (torch.full((2, 1, 4, 4), float("nan")), "must be finite"),
    (torch.full((2, 1, 4, 4), float("inf")), "must be finite"),
    (torch.zeros(2, 4, 4), r"shape \(N, C, H, W\).* got \(2, 4, 4\)"),
    (torch.zeros(2, 0, 4, 4), r"got \(2, 0, 4, 4\)"),
]


@pytest.mark.parametrize(("x", "message"), BAD_PIXELS)
def test_bad_pixels(x: torch.Tensor, message: str) -> None:
    y = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        Images(x, y, torch.arange(2), ("a",), "bad")


def test_one_bad_pixel_is_enough() -> None:
    images = make()
    x = images.x.clone()
    x[17, 0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Images(x, images.y, images.index, images.classes, "bad")


BAD_LABELS = [
    (torch.tensor([0, 1, 2]), torch.arange(2), r"y must have shape \(2,\).* got \(3,\)"),
    (torch.tensor([0, 1]), torch.arange(3), r"index must have shape \(2,\).* got \(3,\)"),
    (torch.tensor([0, 2]), torch.arange(2), r"labels must lie in 0 .. 1.* got 0 .. 2"),
    (torch.tensor([-1, 0]), torch.arange(2), r"labels must lie in 0 .. 1.* got -1 .. 0"),
    (torch.tensor([0, 1]), torch.tensor([-3, 0]), "must not be negative; got -3"),
]


@pytest.mark.parametrize(("y", "index", "message"), BAD_LABELS)
def test_bad_labels(y: torch.Tensor, index: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(torch.zeros(2, 1, 4, 4), y, index, ("a", "b"), "bad")


def test_bad_types() -> None:
    x, y, index = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.arange(2)
    with pytest.raises(
        TypeError, match=r"x must be torch.float32; got torch.float64: pass x.float"
    ):
        Images(x.double(), y, index, ("a",), "bad")
    with pytest.raises(TypeError, match=r"y must be torch.int64; got torch.int32"):
        Images(x, y.int(), index, ("a",), "bad")
    with pytest.raises(TypeError, match="index must be a tensor; got list"):
        Images(x, y, [0, 1], ("a",), "bad")  # type: ignore[arg-type]


def test_assumed_classes_must_be_as_many_as_the_outputs() -> None:
    x, y, index = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.arange(2)
    check_outputs(Images(x, y, index, ("a", "b"), "sure"), 1000)
    assumed = Images(x, y, index, ("a", "b"), "pets", "the order is assumed")
    check_outputs(assumed, 2)
    with pytest.raises(ValueError, match=r"2 classes and the classifier 3 outputs, .*classes=3"):
        check_outputs(assumed, 3)
