"""The network whose features make the published FID: Inception v3 as of 2015-12-05."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depure.analysis.common import slices
from depure.analysis.quality import Features
from depure.weights import (
    UNREADABLE,
    fingerprint,
    fit_weights,
    in_words,
    read_safetensors,
    restricted_load,
)

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of that file
_SIDE = 299  # pixels that the network was made for
_ROWS = 16  # images at once: about 0.4 GiB, whatever the caller's batch

Pool = Callable[[Tensor], Tensor]
# TensorFlow leaves the padding out of an average; PyTorch counts it unless told.
_AVERAGE: Pool = partial(
    F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)  # fmt: skip
_MAXIMUM: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_HALVE: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)


def inception_features(path: str | Path) -> Features:
    """The 2048 features of the published FID and KID, for `quality`.

    Only the file of the pytorch-fid release is known by its SHA-256: with any other, such as
    these weights as .safetensors, the name says that it was not recognised. Images are rounded to
    8 bits, as in the files that published numbers are made of. Nothing is downloaded.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth`, or its tensors under the same names in a
            .safetensors file. A .pth or .pt is read by torch's restricted loader, which runs no
            code.

    Returns:
        A map from images (B, C, H, W) in [0, 1], C = 1 (repeated) or 3, to (B, 2048).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read safely, or holds other tensors, such as torchvision's.

    Source: FID 1706.08500; the network 1512.00567; its conversion github.com/mseitzer/pytorch-fid.
    """
    path = Path(path)
    network = load_inception(path)

    def extract(x: Tensor) -> Tensor:
        network.to(x.device)
        return torch.cat([network(x[rows]) for rows in slices(len(x), _ROWS)])

    mark = fingerprint(network.state_dict())
    if _is_published(path):
        return Features(f"Inception 2015 (published FID), weights {mark}", extract, mark, _SAME)
    name = f"Inception 2015 with unrecognised weights {mark} of {path.name}"
    return Features(name, extract, mark, _UNKNOWN)


_SAME = (
    "the published FID and KID, as pytorch-fid computes them: published numbers compare "
    "only on the same reference images, and with at least 10,000 images in every set"
)
_UNKNOWN = (
    f"the published FID and KID only if the file holds the weights of {PUBLISHED} unchanged, which "
    f"was not checked; then published numbers compare only on the same reference images, and with "
    f"at least 10,000 images in every set"
)


def load_inception(path: Path) -> FIDInception:
    """The network with the weights of a file, frozen and in eval mode, see `inception_features`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read safely, or holds other tensors, such as torchvision's.
    """
    tensors = _read(path)
    if any(n.startswith("AuxLogits.") for n in tensors) or _classes(tensors) == 1000:
        raise ValueError(
            f"{path} is torchvision's Inception (1000 classes), whose features are not those of "
            f"the published FID: give {PUBLISHED} of the pytorch-fid releases"
        )
    network = FIDInception()
    # The layer that makes logits comes after the features. A plain dictionary, because one with
    # torch's version notes would have to hold the counters of training too.
    needed = {name: t for name, t in tensors.items() if name not in ("fc.weight", "fc.bias")}
    try:
        fit_weights(network, needed, path)
    except ValueError as error:
        raise ValueError(
            f"{error}; the features of the published FID need {PUBLISHED} of the pytorch-fid "
            f"releases, or its tensors as .safetensors"
        ) from error
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    if path.suffix.lower() not in (".pth", ".pt"):
        raise ValueError(f"Inception's weights are a .pth or .safetensors file; got {path}")
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: give {PUBLISHED} of the pytorch-fid releases; it is never "
            f"downloaded"
        )
    try:
        found = restricted_load(path)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read safely ({in_words(error)}): download {PUBLISHED} again"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path} is no table of tensors: give {PUBLISHED}")
    return {str(name): tensor for name, tensor in found.items()}


def _classes(tensors: dict[str, Tensor]) -> int | None:
    return len(tensors["fc.weight"]) if "fc.weight" in tensors else None


def _is_published(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == _SHA256


class FIDInception(nn.Module):
    """Inception v3 up to its last average: images (B, C, H, W) in [0, 1] to (B, 2048).

    Names of modules are those of the published file. It differs from torchvision's network in
    the averages, which leave the padding out, and in the last block, which takes a maximum.

    Example:
        >>> FIDInception().eval()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 2048])
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Layer(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Layer(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Layer(32, 64, 3)
        self.Conv2d_3b_1x1 = _Layer(64, 80, 1)
        self.Conv2d_4a_3x3 = _Layer(80, 192, 3, padded=False)
        self.Mixed_5b = _fives(192, 32)
        self.Mixed_5c = _fives(256, 64)
        self.Mixed_5d = _fives(288, 64)
        self.Mixed_6a = _to_sixes(288)
        self.Mixed_6b = _sixes(768, 128)
        self.Mixed_6c = _sixes(768, 160)
        self.Mixed_6d = _sixes(768, 160)
        self.Mixed_6e = _sixes(768, 192)
        self.Mixed_7a = _to_sevens(768)
        self.Mixed_7b = _sevens(1280, _AVERAGE)
        self.Mixed_7c = _sevens(2048, _MAXIMUM)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, C, H, W) in [0, 1], C = 1 or 3.

        Raises:
            ValueError: another shape.
        """
        return self.pool3(prepare(x.to(self.Conv2d_1a_3x3.conv.weight.dtype)))

    def pool3(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of (B, 3, H, W) in [-1, 1] of at least 75 pixels a side."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_HALVE(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_HALVE(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        return torch.as_tensor(self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3)))


def prepare(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as the network takes them: (B, 3, 299, 299) in [-1, 1].

    Rounded to 8 bits; grey repeated in three channels; stretched bilinearly, pixel centres at
    half numbers and no smoothing before, as pytorch-fid does.

    Raises:
        ValueError: there are not one or three channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"Inception's features are of images (B, 1, H, W) or (B, 3, H, W); got {tuple(x.shape)}"
        )
    x = (x * 255).round() / 255
    x = F.interpolate(x.expand(-1, 3, -1, -1), (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


class _Layer(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the size unless it has a stride."""

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padded: bool = True,
    ) -> None:
        super().__init__()
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = (height // 2, breadth // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, width, (height, breadth), stride, around, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _To(NamedTuple):
    """A layer of a branch; it goes from whatever the layer before gives."""

    name: str
    width: int
    kernel: int | tuple[int, int]
    stride: int = 1


_Branch = Sequence[_To | tuple[_To, _To]]


class _Mixed(nn.Module):
    """Branches side by side, joined along the channels: chains of layers, then the pooled input.

    Args:
        inputs: channels.
        branches: each a chain; two layers in one place both go from the one before.
        pool: of the input.
        pooled: channels of the layer after the pooling; 0 for none.
    """

    def __init__(self, inputs: int, branches: Sequence[_Branch], pool: Pool, pooled: int) -> None:
        super().__init__()
        self.chains = [[_pair(place) for place in branch] for branch in branches]
        for chain in self.chains:
            width = inputs
            for place in chain:
                for to in place:
                    self.add_module(to.name, _Layer(width, to.width, to.kernel, to.stride))
                width = place[0].width
        self.pool = pool
        self.branch_pool = _Layer(inputs, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        ends: list[Tensor] = []
        for chain in self.chains:
            parts = [x]
            for place in chain:
                parts = [self.get_submodule(to.name)(parts[0]) for to in place]
            ends += parts
        return torch.cat([*ends, self.branch_pool(self.pool(x))], 1)


def _pair(place: _To | tuple[_To, _To]) -> Sequence[_To]:
    return [place] if isinstance(place, _To) else place


_ROW, _COLUMN = (1, 7), (7, 1)


def _fives(inputs: int, pooled: int) -> _Mixed:
    return _Mixed(
        inputs,
        [
            [_To("branch1x1", 64, 1)],
            [_To("branch5x5_1", 48, 1), _To("branch5x5_2", 64, 5)],
            [_To("branch3x3dbl_1", 64, 1), _To("branch3x3dbl_2", 96, 3),
             _To("branch3x3dbl_3", 96, 3)],
        ],
        _AVERAGE, pooled,
    )  # fmt: skip


def _to_sixes(inputs: int) -> _Mixed:
    return _Mixed(
        inputs,
        [
            [_To("branch3x3", 384, 3, 2)],
            [_To("branch3x3dbl_1", 64, 1), _To("branch3x3dbl_2", 96, 3),
             _To("branch3x3dbl_3", 96, 3, 2)],
        ],
        _HALVE, 0,
    )  # fmt: skip


def _sixes(inputs: int, narrow: int) -> _Mixed:
    return _Mixed(
        inputs,
        [
            [_To("branch1x1", 192, 1)],
            [_To("branch7x7_1", narrow, 1), _To("branch7x7_2", narrow, _ROW),
             _To("branch7x7_3", 192, _COLUMN)],
            [_To("branch7x7dbl_1", narrow, 1), _To("branch7x7dbl_2", narrow, _COLUMN),
             _To("branch7x7dbl_3", narrow, _ROW), _To("branch7x7dbl_4", narrow, _COLUMN),
             _To("branch7x7dbl_5", 192, _ROW)],
        ],
        _AVERAGE, 192,
    )  # fmt: skip


def _to_sevens(inputs: int) -> _Mixed:
    return _Mixed(
        inputs,
        [
            [_To("branch3x3_1", 192, 1), _To("branch3x3_2", 320, 3, 2)],
            [_To("branch7x7x3_1", 192, 1), _To("branch7x7x3_2", 192, _ROW),
             _To("branch7x7x3_3", 192, _COLUMN), _To("branch7x7x3_4", 192, 3, 2)],
        ],
        _HALVE, 0,
    )  # fmt: skip


def _sevens(inputs: int, pool: Pool) -> _Mixed:
    return _Mixed(
        inputs,
        [
            [_To("branch1x1", 320, 1)],
            [_To("branch3x3_1", 384, 1),
             (_To("branch3x3_2a", 384, (1, 3)), _To("branch3x3_2b", 384, (3, 1)))],
            [_To("branch3x3dbl_1", 448, 1), _To("branch3x3dbl_2", 384, 3),
             (_To("branch3x3dbl_3a", 384, (1, 3)), _To("branch3x3dbl_3b", 384, (3, 1)))],
        ],
        pool, 192,
    )  # fmt: skip
