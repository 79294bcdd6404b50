"""Adversarial images that another program made and saved, judged like those of any attack."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depure.attacks.base import Attack, Watch
from depure.attacks.case import Case
from depure.data.images import Images, check_pixels
from depure.defences.defended import Defended
from depure.evaluation.result import Result
from depure.evaluation.run import Progress, evaluate
from depure.threat import Ball, Threat
from depure.weights import (
    fingerprint,
    in_words,
    read_safetensors,
    restricted_load,
)

_NAMES = ("x_adv", "adv_complete", "adv_inputs", "images", "arr_0")  # in this order


class _Stored(Attack):
    _table: dict[bytes, Tensor]  # no field, so no part of a record: the fingerprint stands for it


@dataclass(frozen=True)
class Saved(_Stored):
    """An attack that was run elsewhere: it answers each image with the one stored for it.

    An image is known by its pixels, not by its place or its data-set index: these are all that an
    attack is given, and they are the same whatever the shard and the order. Made by `read_saved`.

    Args:
        source: the file's name.
        fingerprint: of the stored images and their indices.
        table: a digest of each unattacked image, see `digest`, and the stored image (C, H, W).
    """

    source: str
    fingerprint: str
    table: InitVar[dict[bytes, Tensor]]

    def __post_init__(self, table: dict[bytes, Tensor]) -> None:
        object.__setattr__(self, "_table", table)

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: it asks for nothing."""
        return False

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Any."""
        return (Ball,)

    def trace_length(self, case: Case) -> int:
        """0: nothing is measured."""
        return 0

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """The stored images (B, C, H, W); the defence is not asked and the watch hears nothing.

        Raises:
            ValueError: nothing is stored for an image.
        """
        found = [self._table.get(digest(image)) for image in case.x]
        missing = sum(image is None for image in found)
        if missing:
            raise ValueError(
                f"{self.source} holds nothing for {missing} of {len(case.x)} images: a saved "
                f"attack answers only for the images that it was read for"
            )
        return torch.stack([image for image in found if image is not None]).to(case.x)


def judge_file(
    model: Defended,
    images: Images,
    path: str | Path,
    threat: Threat,
    *,
    draws: int = 20,
    seed: int = 0,
    out: str | Path | None = None,
    shard_size: int = 32,
    chunk: int = 128,
    title: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Result:
    """Judge saved adversarial images on fresh draws, with the null control, as `evaluate` does.

    The other program could not know this run's numbers of noise: where `threat.knows` says that
    the attacker does, the images are judged on numbers that they were not made for.

    Args:
        model: the defence.
        images: the unattacked images, see `read_saved` for how those of the file are matched.
        path: the file.
        threat: the ball in which the images must lie, and the stages whose noise is held.
        draws: as the rest, see `evaluate`.
        seed: of all randomness.
        out: run folder; a temporary one, deleted at the end, if omitted.
        shard_size: images per shard, judged together.
        chunk: rows per forward pass.
        title: what a report calls the run.
        command: the command that repeats the run, for the record.
        progress: called with images done and images in all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit (see `read_saved`), or as `evaluate` does.
    """
    saved, judged = read_saved(path, images, threat.ball)
    return evaluate(
        model, judged, saved, threat, draws=draws, seed=seed, out=out, shard_size=shard_size,
        chunk=chunk, check_images=0, title=title, command=command, progress=progress,
    )  # fmt: skip


def read_saved(path: str | Path, images: Images, ball: Ball) -> tuple[Saved, Images]:
    """The saved images as an attack, and those of `images` that the file has an answer for.

    The file is `.safetensors`, `.npz`, `.npy`, `.pt` or `.pth`, with floats (N, C, H, W) in
    [0, 1]: the array of a `.npy` or `.pt`, or else the first there is of the entries "x_adv",
    "adv_complete" (RobustBench and AutoAttack), "adv_inputs" (torchattacks and adv-lib), "images"
    and "arr_0". An entry "index" (N,) says by data-set index to which image each belongs; without
    it there must be as many as `images`, in the same order. Code that a pickle may carry is never
    run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read safely; or number, shape, range or indices do not
            fit the images; or some leave the ball.
    """
    path = Path(path)
    tensors = _read(path)
    try:
        x_adv = _pictures(tensors, images.x.shape[1:])
        rows = _rows(tensors.get("index"), len(x_adv), images.index)
        judged = images[rows]
        _check_ball(x_adv, judged, ball)
        table = _matched(x_adv, judged)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    mark = fingerprint({"x_adv": x_adv, "index": judged.index})
    return Saved(path.name, mark, table), judged


def digest(image: Tensor) -> bytes:
    """What an image (C, H, W) is known by: a hash of its pixels, as float32."""
    pixels = image.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _read(path: Path) -> dict[str, Tensor]:
    """The entries of a file that matter here."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": read_safetensors, ".npz": _read_npz, ".npy": _read_npy,
        ".pt": restricted_load, ".pth": restricted_load,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"adversarial images are read from {', '.join(readers)}; got {path}: save them as one "
            f"of these"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the file of saved adversarial images")
    try:
        found = reader(path)
    except Exception as error:  # a damaged array raises errors of many kinds
        raise ValueError(
            f"{path} cannot be read safely ({in_words(error)}): save the images again, as "
            f"plain arrays, best as .safetensors"
        ) from error
    entries = found if isinstance(found, dict) else {_NAMES[0]: found}
    return {k: v for k, v in entries.items() if k in (*_NAMES, "index")}


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        names = [n for n in file.files if n in (*_NAMES, "index")]
        return {n: torch.from_numpy(file[n]) for n in names}


def _read_npy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _pictures(tensors: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The adversarial images of a file, checked, float32."""
    name = next((n for n in _NAMES if n in tensors), None)
    if name is None:
        raise ValueError(f"none of the entries {', '.join(_NAMES)} is there: name one so")
    x = tensors[name]
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be an array; got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must hold floats in [0, 1]; got {x.dtype}: save x / 255")
    if x.ndim != 4 or x.shape[1:] != shape:
        channels_last = x.ndim == 4 and (x.shape[3], *x.shape[1:3]) == tuple(shape)
        cure = "transpose them (0, 3, 1, 2)" if channels_last else "choose the images attacked"
        raise ValueError(
            f"images must have shape (N, {', '.join(map(str, shape))}), as those of the data set; "
            f"got {tuple(x.shape)}: {cure}"
        )
    if not len(x):
        raise ValueError("there are no images")
    x = x.detach().to(torch.float32).contiguous()
    check_pixels(x, ndim=4)
    return x


def _rows(index: Tensor | None, count: int, known: Tensor) -> Tensor:
    """The row of the data set that each stored image belongs to."""
    if index is None:
        if count != len(known):
            raise ValueError(
                f"{count} images for {len(known)} of the data set, and no index to say which: "
                f"choose the same {count} images in the same order, or save an index"
            )
        return torch.arange(count)
    if not isinstance(index, Tensor) or index.is_floating_point() or index.shape != (count,):
        got = f"{index.dtype} of shape {tuple(index.shape)}" if isinstance(index, Tensor) else index
        raise ValueError(f"index must be {count} whole numbers, one for each image; got {got}")
    places = {int(i): row for row, i in enumerate(known.tolist())}
    wanted = [int(i) for i in index.tolist()]
    if len(set(wanted)) < count:
        twice = next(i for i in wanted if wanted.count(i) > 1)
        raise ValueError(f"index {twice} is there twice: keep one image for each")
    strange = [i for i in wanted if i not in places]
    if strange:
        raise ValueError(
            f"{len(strange)} of {count} images have an index that the data set lacks, first "
            f"{strange[0]} (it has {len(known)} images, {int(known.min())} to {int(known.max())}): "
            f"choose the images that were attacked"
        )
    return torch.tensor([places[i] for i in wanted])


def _check_ball(x_adv: Tensor, judged: Images, ball: Ball) -> None:
    outside = (~ball.contains(x_adv, judged.x)).nonzero()[:, 0]
    if len(outside):
        size = float(ball.size(x_adv - judged.x).max())
        raise ValueError(
            f"{len(outside)} of {len(x_adv)} images leave {ball}, by up to {size - ball.eps:.3g} "
            f"(size {size:.3g}), first that of index {int(judged.index[outside[0]])}: give the "
            f"ball and the images, in the order, that they were made for"
        )


def _matched(x_adv: Tensor, judged: Images) -> dict[bytes, Tensor]:
    table: dict[bytes, Tensor] = {}
    for clean, stored, number in zip(judged.x, x_adv, judged.index.tolist(), strict=True):
        if not torch.equal(table.setdefault(digest(clean), stored), stored):
            raise ValueError(
                f"the image of index {number} is in the data set twice, with two adversarial "
                f"images, which cannot be told apart: judge them in two runs"
            )
    return table
