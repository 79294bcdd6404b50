from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depure.data import Images, folder, image_folder, read_image, write_image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes with 2, 4 and 6 images of 6x6; image i is filled with the grey level i."""
    level = 0
    for count, name in ((2, "ant"), (4, "bee"), (6, "cat")):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = np.full((6, 6, 3), level, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
            level += 1
    return tmp_path


def levels(images: Images) -> list[int]:
    return [int(v) for v in (images.x[:, 0, 0, 0] * 255).round()]


def test_labels_follow_the_sorted_folder_names(tree: Path) -> None:
    images = image_folder(tree)
    assert images.classes == ("ant", "bee", "cat")
    assert images.name == tree.name
    assert images.x.shape == (12, 3, 6, 6)
    assert images.y.tolist() == [0] * 2 + [1] * 4 + [2] * 6
    assert images.index.tolist() == levels(images) == list(range(12))


def test_limit_picks_before_decoding(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    decode = folder._decode

    def spy(file: Path, mode: str, size: int | None) -> torch.Tensor:
        opened.append(file)
        return decode(file, mode, size)

    monkeypatch.setattr(folder, "_decode", spy)
    images = image_folder(tree, limit=6, seed=3)
    assert len(opened) == 6
    assert images.y.bincount().tolist() == [2, 2, 2]
    assert images.index.tolist() == levels(images)
    whole = image_folder(tree)
    assert torch.equal(images.index, whole.sample(6, seed=3).index)
    assert not torch.equal(images.index, whole.sample(6, seed=4).index)


def test_limit_out_of_range(tree: Path) -> None:
    with pytest.raises(ValueError, match="cannot pick 13 of 12"):
        image_folder(tree, limit=13)


def test_greyscale(tree: Path) -> None:
    assert image_folder(tree, channels=1).x.shape == (12, 1, 6, 6)


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    # Thirds: black, white, black. The centre crop of a square leaves white only.
    (tmp_path / "a").mkdir()
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[:, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a" / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "a" / "tall.png")
    assert image_folder(tmp_path, size=30).x.min() == 1.0
    halved = image_folder(tmp_path, size=10).x
    assert halved.shape == (2, 3, 10, 10)
    assert halved[..., 2:-2, 2:-2].min() == 1.0


def test_images_of_the_right_size_are_not_resampled(tree: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (3, 6, 6), generator=generator) / 255
    write_image(noise, tree / "ant" / "0.png")
    assert torch.equal(image_folder(tree, size=6).x[0], noise)


def test_unequal_sizes_name_the_first_mismatch_and_the_cure(tree: Path) -> None:
    write_image(torch.zeros(3, 5, 7), tree / "bee" / "1.png")
    with pytest.raises(
        ValueError, match=r"got 6x6 in .*0\.png and 7x5 in .*bee/1\.png: pass size=5"
    ):
        image_folder(tree)
    assert image_folder(tree, size=5).x.shape == (12, 3, 5, 5)


def test_unreadable_files_are_reported_together(tree: Path) -> None:
    good = (tree / "cat" / "0.png").read_bytes()
    (tree / "ant" / "0.png").write_bytes(good[:50])
    (tree / "ant" / "1.png").write_bytes(b"")
    (tree / "bee" / "0.png").write_text("no image")
    (tree / "bee" / "1.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="cannot read 4 of 12 image files") as caught:
        image_folder(tree)
    message = str(caught.value)
    assert "bee/1.png" not in message
    assert all(name in message for name in ("ant/0.png", "ant/1.png", "bee/0.png"))


def test_sixteen_bit_images_are_refused_not_clipped(tree: Path) -> None:
    Image.fromarray(np.full((6, 6), 40000, dtype=np.uint16)).save(tree / "ant" / "0.png")
    with pytest.raises(ValueError, match="not 8 bits a channel"):
        image_folder(tree)


@pytest.mark.parametrize(("kind", "value"), [("channels", 4), ("size", 0)])
def test_bad_arguments(tree: Path, kind: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{kind} must be .* got {value}"):
        image_folder(tree, **{kind: value})


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        image_folder(tmp_path / "none")
    write_image(torch.zeros(3, 4, 4), tmp_path / "flat.png")
    with pytest.raises(FileNotFoundError, match="has no class folders: expected the layout"):
        image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        image_folder(tmp_path / "flat.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="no images in the class folders"):
        image_folder(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_is_exact(tmp_path: Path, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (channels, 5, 7), generator=generator) / 255
    write_image(image, tmp_path / "new" / "image.png")
    assert torch.equal(read_image(tmp_path / "new" / "image.png", channels=channels), image)


def test_write_image_rounds_to_the_nearest_level(tmp_path: Path) -> None:
    write_image(torch.full((1, 2, 2), 0.999), tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").min() == 1.0


BAD_IMAGES = [
    (torch.zeros(1, 3, 4, 4), "a.png", r"shape \(C, H, W\)"),
    (torch.zeros(2, 4, 4), "a.png", "1 or 3 channels; got 2"),
    (torch.full((3, 4, 4), 2.0), "a.png", "max 2.0"),
    (torch.zeros(3, 4, 4), "a.xyz", "suffix names no known format; use .png"),
]


@pytest.mark.parametrize(("image", "name", "message"), BAD_IMAGES)
def test_write_image_refuses(tmp_path: Path, image: torch.Tensor, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_image(image, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_read_image_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image file at"):
        read_image(tmp_path / "none.png")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    for name in (b"a\xff", b"b"):
        write_image(torch.full((3, 4, 4), 0.2), tmp_path / os.fsdecode(name) / "0.png")
    assert image_folder(tmp_path).classes == ("a\\xff", "b")


def test_labels_follow_the_classifier_and_the_index_does_not(tree: Path) -> None:
    sure = image_folder(tree, classes=["cat", "dog", "bee", "ant"])
    assert sure.classes == ("cat", "dog", "bee", "ant")
    assert sure.y.tolist() == [3] * 2 + [2] * 4 + [0] * 6
    assert sure.index.tolist() == levels(sure) == list(range(12))
    assert not sure.assumed
    plain = image_folder(tree, limit=5, seed=2)
    some = image_folder(tree, limit=5, seed=2, classes=["cat", "dog", "bee", "ant"])
    assert torch.equal(some.index, plain.index)


def test_sorted_order_is_said_to_be_an_assumption(tree: Path) -> None:
    for images in (image_folder(tree), image_folder(tree, classes=3)):
        assert "numbered in sorted order" in images.assumed
        assert images[[3, 1]].assumed == images.sample(2).assumed == images.assumed
    with pytest.raises(ValueError, match=r"3 class folders .*ant, bee, cat.* 4 classes apart"):
        image_folder(tree, classes=4)


def test_a_folder_without_images_has_no_label(tree: Path) -> None:
    (tree / "aardvark").mkdir()
    assert image_folder(tree, classes=3).classes == ("ant", "bee", "cat")
    assert image_folder(tree, classes=["bee", "ant", "cat"]).y.tolist()[0] == 1


def test_a_split_stands_in_the_name(tree: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(torch.zeros(3, 4, 4), tmp_path / "pets" / split / "3" / "0.png")
    images = image_folder(tmp_path / "pets", split="test", classes=10)
    assert (images.name, images.y.tolist(), len(images.classes)) == ("pets/val", [3], 10)
