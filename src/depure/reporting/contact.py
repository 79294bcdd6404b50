"""A contact sheet: images before and after, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from depure.files import replacing
from depure.reporting.pictures import magnification, magnified, to_pil
from depure.reporting.words import TIMES

_ROWS = 32  # images shown at most
_COLUMN = 8  # images per column of the sheet
_SMALL, _LARGE = 96, 192  # edge of a picture: larger images get more room
_GAP, _MARGIN, _HEAD, _NAMES = 6, 20, 26, 130
_INK, _SOFT, _PAPER = "#1b1f24", "#57606a", "#ffffff"


def contact_sheet(
    before: Tensor, after: Tensor, path: str | Path, names: Sequence[str] | None = None
) -> Path:
    """Write a PNG with every image before, after, and their difference magnified; its path.

    Args:
        before: images (N, C, H, W) in [0, 1]; the first 32 are shown.
        after: the same images after purification, of the same shape.
        path: the file to write, with the suffix .png.
        names: one name per image.

    Raises:
        ValueError: for shapes that differ, no images, or a wrong number of names.

    Example:
        >>> contact_sheet(x, purifier(x, noise), "sheet.png")  # doctest: +SKIP
    """
    _check(before, after, names)
    shown = min(len(before), _ROWS)
    x, y = before[:shown].detach().cpu().float(), after[:shown].detach().cpu().float()
    factor = magnification(y - x)
    place = _Layout(shown, _SMALL if max(x.shape[-2:]) <= _SMALL else _LARGE, names is not None)
    sheet = Image.new("RGB", place.size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(13)
    magnify = f" {TIMES}{factor}" if factor > 1 else ""
    for first in range(0, shown, _COLUMN):
        for j, word in enumerate(("before", "after", f"change{magnify}")):
            left, top = place.corner(first, j)
            draw.text((left + place.edge / 2, top - _HEAD), word, _SOFT, font, anchor="ma")
    for i in range(shown):
        if names is not None:
            _name(draw, place.corner(i, 0), place.edge, str(names[i]), font)
        for j, image in enumerate((x[i], y[i], magnified(y[i] - x[i], factor))):
            sheet.paste(_fitted(image, place.edge), place.corner(i, j))
    told = f"{shown} of {len(before)} images; " if shown < len(before) else ""
    times = f"magnified {factor} times, " if factor > 1 else ""
    foot = f"{told}change: after minus before, {times}grey is no change"
    draw.text((_MARGIN, place.size[1] - _MARGIN - 8), foot, _SOFT, _font(11))
    file = Path(path)
    with replacing(file) as temporary:
        sheet.save(temporary, "PNG")
    return file


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in pixels: columns of up to 8 images, three squares each."""

    images: int
    edge: int
    named: bool

    @property
    def _block(self) -> int:
        return _NAMES * self.named + 3 * (self.edge + _GAP) + _MARGIN

    @property
    def size(self) -> tuple[int, int]:
        """Of the whole sheet, wide enough for the line below it."""
        columns = -(-self.images // _COLUMN)
        rows = min(self.images, _COLUMN)
        width = max(columns * self._block + _MARGIN, 540)
        return width, rows * (self.edge + _GAP) + 2 * _HEAD + 2 * _MARGIN

    def corner(self, image: int, square: int) -> tuple[int, int]:
        """Upper left corner of a square."""
        left = _MARGIN + image // _COLUMN * self._block + _NAMES * self.named
        step = self.edge + _GAP
        return left + square * step, _MARGIN + _HEAD + image % _COLUMN * step


def _check(before: Tensor, after: Tensor, names: Sequence[str] | None) -> None:
    if before.ndim != 4 or before.shape != after.shape or 0 in before.shape:
        raise ValueError(
            f"before and after must be images of one shape (N, C, H, W); got "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )
    if names is not None and len(names) != len(before):
        raise ValueError(f"names must hold one name per image, {len(before)}; got {len(names)}")


def _fitted(image: Tensor, edge: int) -> Image.Image:
    """In a square: small images enlarged pixel by pixel, large ones reduced."""
    picture = to_pil(image).convert("RGB")
    longest = max(picture.size)
    if longest > edge:
        picture.thumbnail((edge, edge), Image.Resampling.BOX)
    else:
        size = (picture.width * (edge // longest), picture.height * (edge // longest))
        picture = picture.resize(size, Image.Resampling.NEAREST)
    square = Image.new("RGB", (edge, edge), _PAPER)
    square.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
    return square


def _name(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    edge: int,
    text: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Beside the first picture, cut to the room there is."""
    shown = text
    while shown and draw.textlength(shown, font) > _NAMES - 10:
        shown = shown[:-2] + "\u2026" if len(shown) > 2 else ""
    draw.text((corner[0] - 8, corner[1] + edge / 2), shown, _INK, font, anchor="rm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which covers more alphabets than Pillow's own."""
    import matplotlib  # only when a sheet is made

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )
