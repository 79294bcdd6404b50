"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from depure.reporting import contact_sheet
from depure.reporting.pictures import magnification


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 32, 32), (9, 3, 200, 120), (40, 1, 8, 8)])
@pytest.mark.parametrize("named", [False, True])
def test_sheet_is_written(tmp_path, shape, named):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    names = [f"a rather long file name {i}.png" for i in range(len(x))] if named else None
    path = contact_sheet(x, (x + 0.03).clamp(0, 1), tmp_path / "deep" / "sheet.png", names)
    with Image.open(path) as sheet:
        assert sheet.width < 3000
        assert sheet.height < 2000
        assert np.asarray(sheet).std() > 0


def test_pixels_are_those_of_the_images(tmp_path):
    x = torch.zeros(1, 3, 8, 8)
    x[:, 0] = 1.0  # red, and nothing else on the sheet is
    with Image.open(contact_sheet(x, x, tmp_path / "s.png")) as sheet:
        red = (np.asarray(sheet) == (255, 0, 0)).all(2).sum()
        grey = (np.asarray(sheet) == (128, 128, 128)).all(2).sum()
    assert red == 2 * 96 * 96
    assert grey >= 96 * 96


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.0, 1), (0.9, 1), (0.25, 2), (8 / 255, 10), (1e-3, 500)]
)
def test_magnification(largest, factor):
    assert magnification(torch.tensor([0.0, -largest])) == factor


def test_refusals(tmp_path):
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="one shape"):
        contact_sheet(x, x[:1], tmp_path / "s.png")
    with pytest.raises(ValueError, match="one shape"):
        contact_sheet(x[:0], x[:0], tmp_path / "s.png")
    with pytest.raises(ValueError, match="one name per image, 2; got 1"):
        contact_sheet(x, x, tmp_path / "s.png", ["a"])
