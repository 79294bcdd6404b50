"""The 8x8 handwritten digits that scikit-learn ships: real data without a download."""

from __future__ import annotations

from typing import Literal

import torch

from depure.data.images import Images, occurrence


def digits(split: Literal["train", "test"]) -> Images:
    """The optical-recognition digits (Alpaydin & Kaynak 1998) as `(N, 1, 8, 8)` in `[0, 1]`.

    Of every class the 2nd, 5th, 8th ... image is a test image (599 of them), the others train
    (1,198): a fixed rule, so the split does not hang on a library's shuffling. The same writers
    are in both. `index` is the row in `sklearn.datasets.load_digits`.

    Raises:
        ValueError: `split` is neither `"train"` nor `"test"`.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test"; got {split!r}')
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    in_test = occurrence(y) % 3 == 1
    rows = torch.nonzero(in_test if split == "test" else ~in_test).flatten()
    classes = tuple(str(n) for n in range(10))
    return Images(x[rows], y[rows], rows, classes, f"digits-{split}")
