"""`depure purify`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from depure.cli import options as opts
from depure.cli.build import build_purifier, channels_of, check_size
from depure.cli.config import config
from depure.cli.show import console, progress_bar
from depure.cli.values import Count
from depure.data import list_images, read_image, write_image
from depure.files import sweep
from depure.noise import Noise
from depure.purifiers import Purifier


@click.command("purify", short_help="Purify a file or folder of images.")
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUTPUT", type=click.Path(path_type=Path))
@config
@opts.purifier
@opts.common
@click.option(
    "--image-size",
    type=Count(1, 8192),
    default=None,
    help="Resize and centre-crop to this size first.",
)
@click.option("--batch", default=32, show_default=True, type=Count(), help="Images at a time.")
@click.option(
    "--contact-sheet",
    type=click.Path(path_type=Path),
    default=None,
    help="Also write a picture of before, after and difference.",
)
@click.option("--overwrite", is_flag=True, help="Purify images again whose output exists.")
def command(source: Path, target: Path, **options: Any) -> int:
    """Purify an image file, or every image of a folder (names and sub-folders are kept).

    An image's noise depends on --seed and its name alone, not on the other images. Outputs that
    exist are kept unless --overwrite is given, so a stopped run continues. Unreadable images are
    skipped, named at the end, and make the exit status 1.

    \b
    Examples:
      depure purify attacked.png clean.png --denoiser ddpm-cifar10 --steps 20
      depure purify attacked/ clean/ --denoiser ddpm-cifar10 --contact-sheet sheet.png
    """
    if source.resolve() == target.resolve():
        raise ValueError("INPUT and OUTPUT are the same: name another OUTPUT")
    if options["denoiser"] == "none":
        raise ValueError("--denoiser none purifies nothing: name a diffusion model")
    purifier = build_purifier(options)
    pairs = _pairs(source, target)
    for folder in {after.parent for _, after in pairs}:
        sweep(folder)
    todo = [p for p in pairs if options["overwrite"] or not p[1].exists()]
    out, failed, seen = console(), [], []
    with progress_bar("purifying", len(todo)) as progress:
        for start in range(0, len(todo), options["batch"]):
            group, bad = _read(todo[start : start + options["batch"]], purifier, options)
            failed += bad
            done, misfits = _purify(purifier, group, source, options)
            seen += done
            failed += misfits
            progress(min(start + options["batch"], len(todo)), len(todo))
    kept = len(pairs) - len(todo)
    out.print(
        f"purified {len(seen)} image(s) into {target}"
        + (f"; {kept} output(s) existed and were kept (--overwrite renews them)" if kept else "")
    )
    if options["contact_sheet"] and seen:
        _sheet(seen, options["contact_sheet"])
        out.print(f"contact sheet: {options['contact_sheet']}")
    for text in failed[:10]:
        click.echo(f"Error: {text}", err=True)
    if len(failed) > 10:
        click.echo(f"Error: and {len(failed) - 10} more", err=True)
    return 1 if failed else 0


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"INPUT is a folder but OUTPUT {target} is a file: name a folder")
        found = list_images(source)
        if not found:
            raise FileNotFoundError(f"no images in {source}")
        return [(p, target / p.relative_to(source)) for p in found]
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    return [(source, target / source.name if target.is_dir() else target)]


def _read(
    pairs: list[tuple[Path, Path]], purifier: Purifier, options: dict[str, Any]
) -> tuple[list[tuple[Path, Path, Tensor]], list[str]]:
    read, bad = [], []
    for before, after in pairs:
        try:
            image = read_image(before, channels_of(purifier) or 3, options["image_size"])
            read.append((before, after, image))
        except ValueError as error:
            bad.append(str(error))
    return read, bad


def _purify(
    purifier: Purifier, group: list[tuple[Path, Path, Tensor]], root: Path, options: dict[str, Any]
) -> tuple[list[tuple[str, Tensor, Tensor]], list[str]]:
    """Purify and write images, one batch for every size: (name, before, after), and misfits."""
    done, misfits = [], []
    for shape in sorted({tuple(image.shape) for _, _, image in group}):
        rows = [row for row in group if tuple(row[2].shape) == shape]
        names = [p.relative_to(root).as_posix() if root.is_dir() else p.name for p, _, _ in rows]
        noise = Noise.of(options["seed"], [_index(name) for name in names])
        x = torch.stack([image for _, _, image in rows]).to(options["device"])
        try:
            check_size(purifier, x)
            with torch.no_grad():
                clean = purifier(x, noise).clamp(0.0, 1.0).cpu()
        except (RuntimeError, ValueError) as error:
            misfits += [f"{name}: {str(error).splitlines()[0]}" for name in names]
            continue
        for name, (_, after, before), pure in zip(names, rows, clean, strict=True):
            write_image(pure, after)
            done.append((name, before, pure))
    return done, misfits


def _index(name: str) -> int:
    """The number that keys an image's noise: from its name, whatever files lie beside it."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big") >> 1


def _sheet(seen: list[tuple[str, Tensor, Tensor]], path: Path) -> None:
    from depure.reporting import contact_sheet

    first = [row for row in seen if row[1].shape == seen[0][1].shape]
    names, before, after = zip(*first, strict=True)
    contact_sheet(torch.stack(before), torch.stack(after), path, names=names)
