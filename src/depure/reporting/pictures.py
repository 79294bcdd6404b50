"""Images as inline PNGs, and the strip of examples."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depure.reporting.load import Run
from depure.reporting.words import MARKS, NBSP, TIMES

_LARGEST = 160  # pixels; larger images are shown reduced


@dataclass(frozen=True)
class Picture:
    """One image of a strip: its data URI, what it shows, and the label given to it."""

    uri: str
    alt: str
    label: str = ""
    mark: str = ""  # a tick or a cross
    right: bool = True
    votes: str = ""  # "18/20": draws that gave this label


@dataclass(frozen=True)
class Strip:
    """Rows of pictures under the true labels; `factor` magnifies the perturbation."""

    truth: list[str]
    rows: list[tuple[str, str, list[Picture]]]  # name, explanation, pictures
    factor: int
    reduced: bool


def uri(image: Tensor) -> str:
    """A PNG data URI of (C, H, W) in [0, 1]; more than 3 channels show the first 3."""
    buffer = io.BytesIO()
    picture = to_pil(image)
    if max(picture.size) > _LARGEST:
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX)
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_pil(image: Tensor) -> Image.Image:
    """8-bit picture of (C, H, W), cut to [0, 1]: grey for 1 or 2 channels, else RGB."""
    shown = image[:3] if len(image) >= 3 else image[:1]
    bounded = shown.detach().cpu().float().nan_to_num().clamp(0.0, 1.0)
    pixels = (bounded * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if len(shown) == 1 else pixels))


def magnification(delta: Tensor) -> int:
    """The factor of 1, 2, 5, 10, ... that brings the largest change nearest to half the range."""
    largest = float(delta.abs().max()) if delta.numel() else 0.0
    if largest <= 0 or not math.isfinite(largest):
        return 1
    wanted = 0.5 / largest
    steps = [m * 10**e for e in range(4) for m in (1, 2, 5)]
    return max([s for s in steps if s <= wanted * 1.001], default=1)


def magnified(delta: Tensor, factor: int) -> Tensor:
    """A change as an image: mid-grey where there is none."""
    return 0.5 + factor * delta


def strip(run: Run) -> Strip | None:
    """Clean, adversarial, perturbation and purified images; None where the pixels are gone."""
    t = run.tables
    if t is None:
        return None
    factor = magnification(t.x_adv - t.x)
    names = class_names(run)
    truth = [name(names, int(y)) for y in t.y[: len(t.x)]]
    one = run.draws == 1
    vote = "label after purification" + ("" if one else f", by vote of {run.draws} draws")
    rows = [
        ("Clean", vote, _judged(run, "clean", t.x)),
        ("Attacked", vote, _judged(run, "attacked", t.x_adv)),
        ("Change" + (f", {TIMES}{NBSP}{factor}" if factor > 1 else ""), "grey is no change",
         [Picture(uri(magnified(d, factor)), "change") for d in t.x_adv - t.x]),
    ]  # fmt: skip
    for key, title in (("clean", "Clean, purified"), ("adversarial", "Attacked, purified")):
        if key in run.purified:
            note = "what the classifier sees" if one else "first draw, and its label"
            rows.append((title, note, _purified(run, key)))
    return Strip(truth, rows, factor, max(t.x.shape[-2:]) > _LARGEST)


def _judged(run: Run, what: str, images: Tensor) -> list[Picture]:
    """Pictures with the label that most draws give to them."""
    t = run.tables
    if t is None:
        return []
    predictions, names, out = (t.clean if what == "clean" else t.adversarial), class_names(run), []
    for image, votes, y in zip(images, predictions, t.y, strict=False):
        label = int(votes.long().mode().values)
        share = f"{int((votes == label).sum())}/{len(votes)}" if len(votes) > 1 else ""
        out.append(_picture(image, what, names, label, int(y), share))
    return out


def _purified(run: Run, key: str) -> list[Picture]:
    t = run.tables
    if t is None:
        return []
    first = (t.clean if key == "clean" else t.adversarial)[:, 0]
    names, what = class_names(run), "purified " + ("clean" if key == "clean" else "attacked")
    rows = zip(run.purified[key], first, t.y, strict=False)
    return [_picture(image, what, names, int(label), int(y)) for image, label, y in rows]


def _picture(
    image: Tensor, what: str, names: list[str], label: int, y: int, votes: str = ""
) -> Picture:
    right = label == y
    mark = MARKS["pass" if right else "fail"][0]
    alt = f"{what} image of class {name(names, y)}, taken for {name(names, label)}"
    return Picture(uri(image), alt, name(names, label), mark, right, votes)


def pairs(run: Run) -> list[tuple[Picture, str]]:
    """For a comparison: each attacked image with its label, and its purified version's URI."""
    if run.tables is None:
        return []
    attacked = _judged(run, "attacked", run.tables.x_adv)
    purified = [p.uri for p in _purified(run, "adversarial")] if run.purified else []
    purified += [""] * (len(attacked) - len(purified))
    return list(zip(attacked, purified, strict=True))


def class_names(run: Run) -> list[str]:
    """Names of the classes, in label order."""
    return [str(c) for c in run.setting["data"]["classes"]]


def name(names: list[str], label: int) -> str:
    """A class's name, or its number where it has none."""
    return names[label] if 0 <= label < len(names) else str(label)
