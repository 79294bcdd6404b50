from __future__ import annotations

from pathlib import Path

import pytest

from depure.data import list_images
from depure.data.layout import Split, class_folders


def touch(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def found(root: Path, split: Split | None) -> tuple[str, list[str]]:
    place, groups = class_folders(root, split)
    return place.relative_to(root).as_posix(), list(groups)


def test_list_images_is_sorted_recursive_and_skips_the_rest(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/.hidden.png", ".cache/c.png", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list_images(tmp_path) == [tmp_path / "a/z.JPG", tmp_path / "b.png"]


def test_system_folders_are_no_classes_and_hold_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "cat/@eaDir/a.png", "__MACOSX/cat/a.png", ".git/a.png")
    touch(tmp_path, "$RECYCLE.BIN/a.png", "lost+found/a.png", ".ipynb_checkpoints/a.png")
    assert class_folders(tmp_path, None) == (tmp_path, {"cat": [tmp_path / "cat/a.png"]})


LAYOUTS: list[tuple[list[str], Split | None, str]] = [
    (["train/a/0.png", "val/a/0.png", "test/a/0.png"], "test", "test"),
    (["train/a/0.png", "val/a/0.png", "test/a/0.png"], "train", "train"),
    (["train/a/0.png", "val/a/0.png", "test/a/0.png"], "val", "val"),
    (["Train/a/0.png", "Validation/a/0.png"], "test", "Validation"),
    (
        ["train/a/0.png", "val/a/0.png", "test/0.png"],
        "test",
        "val",
    ),  # ImageNet's test has no labels
    (["train/a/0.png", "test/a/0.png", "extra/a/0.png"], "test", "test"),
    (["training/a/0.png"], "train", "training"),
    (["test/a/0.png", "val/.hidden/0.png"], "test", "test"),
]


@pytest.mark.parametrize(("files", "split", "taken"), LAYOUTS)
def test_the_split_asked_for(
    tmp_path: Path, files: list[str], split: Split | None, taken: str
) -> None:
    assert found(touch(tmp_path, *files), split) == (taken, ["a"])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.png", "train/more/0.png", "tulip/0.png")
    assert found(tmp_path, "test") == (".", ["train", "tulip"])


@pytest.mark.parametrize(
    ("files", "split", "words"),
    [
        (["train/a/0.png", "val/a/0.png"], None, 'split="train" or "test"'),
        (["train/a/0.png"], "test", "holds train/, and no test or val folder with classes"),
        (["val/a/0.png"], "train", "holds val/, and no train folder with classes"),
        (["train/0.png", "test/0.png"], "test", "test/ and train/, splits without class folders"),
        (["val/a/0.png", "valid/a/0.png"], "test", "val/ and valid/, which mean one split"),
        (["a/0.png"], "dev", "split must be one of"),
    ],
)
def test_splits_that_do_not_fit(tmp_path: Path, files: list[str], split: Split, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        class_folders(touch(tmp_path, *files), split)
