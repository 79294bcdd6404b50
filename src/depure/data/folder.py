"""Folders of image files: list, read, write."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from depure.data.images import Images, check_pixels, stratified
from depure.files import plain, replacing
from depure.weights import UNREADABLE, first_line

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_MODES = {1: "L", 3: "RGB"}
# What Pillow raises for files that are damaged, truncated or no image at all, in words of its own.
_PILLOWS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def image_folder(
    path: str | PathLike[str],
    size: int | None = None,
    channels: int = 3,
    limit: int | None = None,
    seed: int = 0,
) -> Images:
    """Read ``PATH/CLASS/image`` files; the sorted folder names are the labels.

    Args:
        path: a folder with one sub-folder for each class. Names that begin with a dot are skipped.
        size: ``None`` takes the images as they are, all of one size. A number resizes the shorter
            side to it (bilinear, antialiased) and crops the centre.
        channels: 3 for RGB, 1 for greyscale.
        limit: reads only so many images, with the classes as balanced as possible. They are picked
            from the file list, so the others are never opened.
        seed: fixes what ``limit`` picks.

    Returns:
        The images; ``index`` is the position in the full sorted file list, whatever the limit.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: unreadable files (all are named or counted in one error), unequal sizes without
            ``size``, or an argument out of range.
    """
    root = Path(path)
    classes = _class_names(root)
    groups = [list_images(root / name) for name in classes]
    files = [file for group in groups for file in group]
    if not files:
        raise FileNotFoundError(
            f"no images in the class folders of {root}: expected files that end in "
            + ", ".join(sorted(SUFFIXES))
        )
    y = torch.tensor([label for label, group in enumerate(groups) for _ in group])
    index = torch.arange(len(files)) if limit is None else stratified(y, limit, seed)
    x = _read_all([files[i] for i in index.tolist()], channels, size)
    names = tuple(plain(name) for name in classes)
    return Images(x.float() / 255, y[index], index, names, plain(root.resolve().name))


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """Every image file in ``folder`` and below it, known by its suffix, in sorted order.

    Names that begin with a dot are skipped.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = _existing_folder(folder)
    names = (file.relative_to(root) for file in root.rglob("*") if file.is_file())
    images = (name for name in names if name.suffix.lower() in SUFFIXES and not _hidden(name))
    return [root / name for name in sorted(images, key=Path.as_posix)]


def read_image(path: str | PathLike[str], channels: int = 3, size: int | None = None) -> Tensor:
    """One image as float32 ``(C, H, W)`` in ``[0, 1]``; arguments as in :func:`image_folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image file at {path}: check the path")
    return _read_all([Path(path)], channels, size)[0].float() / 255


def write_image(image: Tensor, path: str | PathLike[str]) -> None:
    """Write a ``(C, H, W)`` image in ``[0, 1]``, C being 1 or 3, rounded to 8 bits a channel.

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


def _existing_folder(path: str | PathLike[str]) -> Path:
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {what}: pass a folder of images")
    return root


def _class_names(path: Path) -> tuple[str, ...]:
    root = _existing_folder(path)
    names = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not names:
        raise FileNotFoundError(
            f"{root} has no class folders: expected the layout FOLDER/CLASS/image.png"
        )
    return tuple(names)


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _read_all(files: list[Path], channels: int, size: int | None) -> Tensor:
    """The files as one uint8 tensor ``(N, C, H, W)``: a quarter of the memory of float32."""
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
