"""Folders of image files: list, read, write."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from depure.data.classes import Classes, number_classes
from depure.data.images import Images, check_pixels, stratified
from depure.data.layout import SUFFIXES, Split, class_folders
from depure.files import plain, replacing
from depure.weights import UNREADABLE, first_line

_MODES = {1: "L", 3: "RGB"}
# What Pillow raises for files that are damaged, truncated or no image at all, in words of its own.
_PILLOWS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def image_folder(
    path: str | PathLike[str],
    size: int | None = None,
    channels: int = 3,
    limit: int | None = None,
    seed: int = 0,
    *,
    classes: Classes | None = None,
    split: Split | None = None,
) -> Images:
    """Read `PATH/CLASS/image` files, with labels as the classifier numbers its classes.

    Args:
        path: a folder with one sub-folder for each class; those without images do not count.
            Names that begin with a dot are skipped, and folders that systems make (`__MACOSX`).
        size: `None` takes the images as they are, all of one size. A number resizes the shorter
            side to it (bilinear, antialiased) and crops the centre.
        channels: 3 for RGB, 1 for greyscale.
        limit: reads only so many images, with the classes as balanced as possible. They are picked
            from the file list, so the others are never opened.
        seed: fixes what `limit` picks.
        classes: the classifier's class names in order (`read_classes` reads a file of them), or
            how many it tells apart, see `match_classes`. If omitted, folders that are all named by
            whole numbers are class indices; others are numbered in sorted order, which
            `Images.assumed` says.
        split: of a folder that holds `train/`, `val/` or `test/` with classes in them, which
            to read; `"test"` takes `val/` where nothing else is left.

    Returns:
        The images; `index` is the position in the full sorted file list, whatever the limit and
        the classes. A split stands in the name: `pets/val`.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: unreadable files (all are named or counted in one error), unequal sizes without
            `size`, an argument out of range, class folders that fit no class, or two folders
            that fit one.

    Example:
        >>> image_folder("imagenette2", size=224, classes=1000, split="test")  # doctest: +SKIP
        Images('imagenette2/val': 3925 images of 3x224x224, 1000 classes)
    """
    root, groups = class_folders(Path(path), split)
    numbers = number_classes([plain(name) for name in groups], classes)
    files = [file for group in groups.values() for file in group]
    places = torch.tensor([n for n, group in enumerate(groups.values()) for _ in group])
    # Balanced by folder, so that the same images are picked however the classes are numbered.
    index = torch.arange(len(files)) if limit is None else stratified(places, limit, seed)
    x = _read_all([files[i] for i in index.tolist()], channels, size)
    y = torch.tensor(numbers.labels)[places[index]]
    name, whole = root.resolve().name, Path(path).resolve()
    name = name if root.resolve() == whole else f"{whole.name}/{name}"
    return Images(x.float() / 255, y, index, numbers.classes, plain(name), numbers.assumed)


def read_image(path: str | PathLike[str], channels: int = 3, size: int | None = None) -> Tensor:
    """One image as float32 `(C, H, W)` in `[0, 1]`; arguments as in `image_folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image file at {path}: check the path")
    return _read_all([Path(path)], channels, size)[0].float() / 255


def write_image(image: Tensor, path: str | PathLike[str]) -> None:
    """Write a `(C, H, W)` image in `[0, 1]`, C being 1 or 3, rounded to 8 bits a channel.

    The suffix chooses the format. PNG gives back the rounded pixels exactly; JPEG does not, and
    damages an adversarial perturbation. Missing parent folders are made.

    Raises:
        ValueError: the shape, the range or the suffix does not fit.
    """
    check_pixels(image, ndim=3)
    if image.shape[0] not in _MODES:
        raise ValueError(f"an image file has 1 or 3 channels; got {image.shape[0]}")
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot write {file.name!r}: its suffix names no known format; use .png")
    pixels = (image.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    kind = Image.registered_extensions()[file.suffix.lower()]
    with replacing(file) as temporary:
        Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels).save(temporary, kind)


def _read_all(files: list[Path], channels: int, size: int | None) -> Tensor:
    """The files as one uint8 tensor `(N, C, H, W)`: a quarter of the memory of float32."""
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 (greyscale) or 3 (RGB); got {channels}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel; got {size}")
    pixels: list[Tensor] = []
    bad: list[str] = []
    for file in files:
        try:
            pixels.append(_decode(file, _MODES[channels], size))
        except UnidentifiedImageError:
            bad.append(f"{file} (no image)")
        except _PILLOWS as error:
            bad.append(f"{file} ({getattr(error, 'strerror', None) or first_line(error)})")
        except UNREADABLE:
            bad.append(f"{file} (damaged)")
    if bad:
        shown = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
        raise ValueError(
            f"cannot read {len(bad)} of {len(files)} image files: {shown}: replace or remove them"
        )
    _check_sizes(files, pixels)
    return torch.stack(pixels)


def _decode(file: Path, mode: str, size: int | None) -> Tensor:
    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            # Pillow would clip or shift such values without a word.
            raise ValueError(f"pixel format {opened.mode} is not 8 bits a channel")
        image = opened.convert(mode)
    if size is not None:
        image = _resize_and_crop(image, size)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.unsqueeze(0) if mode == "L" else pixels.permute(2, 0, 1).contiguous()


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    scale = size / min(width, height)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    image = image.resize(target, Image.Resampling.BILINEAR)  # an exact copy if it fits already
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def _check_sizes(files: list[Path], pixels: list[Tensor]) -> None:
    for file, image in zip(files, pixels, strict=True):
        if image.shape != pixels[0].shape:
            (h0, w0), (h, w) = pixels[0].shape[1:], image.shape[1:]
            raise ValueError(
                f"images must share one size; got {w0}x{h0} in {files[0]} and {w}x{h} in {file}: "
                f"pass size={min(h0, w0, h, w)} to resize and crop them"
            )
