from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from depure.data import digits


def test_shapes_range_and_sizes() -> None:
    train, test = digits("train"), digits("test")
    assert train.x.shape == (1198, 1, 8, 8)
    assert test.x.shape == (599, 1, 8, 8)
    assert (test.classes, test.name) == (tuple("0123456789"), "digits-test")
    assert float(train.x.max()) == 1.0
    assert float(train.x.min()) == 0.0


def test_the_splits_cover_everything_once_and_are_stratified() -> None:
    train, test = digits("train"), digits("test")
    both = torch.cat([train.index, test.index]).sort().values
    assert torch.equal(both, torch.arange(1797))
    share = test.y.bincount() / (test.y.bincount() + train.y.bincount())
    assert float((share - 1 / 3).abs().max()) < 0.005


def test_index_is_the_row_in_scikit_learn() -> None:
    data, test = load_digits(), digits("test")
    rows = test.index.numpy()
    assert torch.equal(test.x[:, 0] * 16, torch.tensor(data.images[rows]).float())
    assert test.y.tolist() == data.target[rows].tolist()


def test_the_split_never_moves() -> None:
    # Bundled weights and published figures hang on these rows.
    index = digits("test").index
    assert index[:14].tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 33, 36, 37, 40]
    assert int(index.sum()) == 537978
    assert int((index * index % 1009).sum()) == 298880


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match='must be "train" or "test"; got \'val\''):
        digits("val")  # type: ignore[arg-type]
