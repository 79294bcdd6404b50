"""Where the images of a folder lie: its class folders, and its splits."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from depure.files import plain
from depure.records import came

Split = Literal["train", "val", "test"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Names of folders that mean a split, and the splits that are taken for one, in this order.
_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_TAKEN = {"train": ("train",), "val": ("val",), "test": ("test", "val")}
# What operating systems, file servers and tools leave in folders.
_SYSTEM = frozenset({
    "__macosx", "__pycache__", "$recycle.bin", "recycler", "system volume information",
    "@eadir", "#recycle", "#snapshot", "@recycle", "lost+found", "thumbs", "thumbs.db",
})  # fmt: skip


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """Every image file in `folder` and below it, known by its suffix, in sorted order.

    Names that begin with a dot are skipped, and folders that systems make (`__MACOSX`, `@eaDir`).

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = existing_folder(folder)
    names = (file.relative_to(root) for file in root.rglob("*") if file.is_file())
    images = (n for n in names if _is_image(n) and not any(map(_skipped, n.parts)))
    return [root / name for name in sorted(images, key=Path.as_posix)]


def class_folders(root: Path, split: Split | None) -> tuple[Path, dict[str, list[Path]]]:
    """The folder whose sub-folders are the classes, and the images of each that has some.

    That is `root`, or the split in it that is asked for; for "test" also "val", if that is all.

    Raises:
        FileNotFoundError: there is no such folder, no class folder or no image in it.
        ValueError: the folder holds splits, and not the one asked for, or none is asked for.
    """
    if split is not None and split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)} or None; got {came(split)}")
    folders = _sub_folders(existing_folder(root))
    if not folders:
        raise FileNotFoundError(
            f"{root} has no class folders: expected the layout FOLDER/CLASS/image.png"
        )
    splits = _splits(root, folders)
    if splits:
        root = _taken(root, splits, split)
        folders = _sub_folders(root)
    groups = {folder.name: list_images(folder) for folder in folders}
    found = {name: images for name, images in groups.items() if images}
    if not found:
        raise FileNotFoundError(
            f"no images in the class folders of {root}: expected files that end in "
            + ", ".join(sorted(SUFFIXES))
        )
    return root, found


def existing_folder(path: str | PathLike[str]) -> Path:
    """The folder; FileNotFoundError if it is none."""
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{plain(str(root))} {what}: pass a folder of images")
    return root


def _sub_folders(root: Path) -> list[Path]:
    found = (d for d in root.iterdir() if d.is_dir() and not _skipped(d.name))
    return sorted(found, key=lambda d: d.name)


def _splits(root: Path, folders: list[Path]) -> list[Path]:
    """Those of the sub-folders that are splits with class folders in them; [] if all are classes.

    One class may be called train (CIFAR-100 has it), so one such name among others says nothing.
    """
    named = [d for d in folders if d.name.lower() in _NAMES]
    nested = [d for d in named if _has_class_folders(d)]
    others = len(named) < len(folders)
    if nested and (len(named) > 1 or not others):
        return nested
    if len(named) > 1 and not others:
        raise ValueError(
            f"{root} holds {_some(named)}, splits without class folders: expected the layout "
            f"FOLDER/{named[0].name}/CLASS/image.png"
        )
    return []


def _taken(root: Path, splits: list[Path], split: Split | None) -> Path:
    if split is None:
        raise ValueError(
            f"{root} holds {_some(splits)} rather than classes: pass one of these folders, or "
            f'split="train" or "test"'
        )
    for kind in _TAKEN[split]:
        found = [d for d in splits if _NAMES[d.name.lower()] == kind]
        if len(found) > 1:
            raise ValueError(f"{root} holds {_some(found)}, which mean one split: pass one of them")
        if found:
            return found[0]
    raise ValueError(
        f"{root} holds {_some(splits)}, and no {' or '.join(_TAKEN[split])} folder with classes: "
        f"pass the folder to take instead"
    )


def _has_class_folders(folder: Path) -> bool:
    return any(_is_image(f) for d in _sub_folders(folder) for f in d.rglob("*"))


def _is_image(name: Path) -> bool:
    return name.suffix.lower() in SUFFIXES


def _skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _some(folders: list[Path]) -> str:
    return " and ".join(f"{d.name}/" for d in folders)
