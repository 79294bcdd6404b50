from __future__ import annotations

import json
from pathlib import Path

import pytest

from depure.data import read_classes

CAT_DOG = (("cat",), ("dog",))
IMAGENET = (("n01440764", "tench"), ("n01443537", "goldfish"))


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (b"cat\ndog\n", CAT_DOG),
        (b"cat\ndog\n\n\n", CAT_DOG),
        (b"\xef\xbb\xbfcat\r\ndog", CAT_DOG),
        (b"n01440764 tench\nn01443537\tgoldfish\n", IMAGENET),
        (b'["cat", "dog"]', CAT_DOG),
        (b'\xef\xbb\xbf{"1": "dog", "0": "cat"}', CAT_DOG),
        (b'{"dog": 1, "cat": 0}', CAT_DOG),
        (b'{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', IMAGENET),
        ("h\u00e9ron\n".encode(), (("h\u00e9ron",),)),
    ],
)
def test_forms(tmp_path: Path, content: bytes, classes: tuple[tuple[str, ...], ...]) -> None:
    (tmp_path / "classes").write_bytes(content)
    assert read_classes(tmp_path / "classes") == classes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"\ncat\n", "line 1 is empty"),
        (b"c\xe4t\n", "no UTF-8 text"),
        ("cat\n".encode("utf-16"), "no UTF-8 text"),
        (b"c\x00t\n", "cannot be printed"),
        (b'["cat", "dog"', "holds no list of classes"),
        (b'["cat", 3]', "class 1 is 3 instead of a name"),
        (b'["cat", ""]', "class 1 is '' instead of a name"),
        (b'["cat", []]', "instead of a name"),
        (b"{}", "it is empty"),
        (b'{"0": "cat", "2": "dog"}', "2 entries, and none of index 1"),
        (b'{"0": "cat", "0": "dog"}', "the key '0' stands there twice"),
        (b'{"0": "cat", "00": "dog"}', "2 entries, and none of index 1"),
        (b'{"cat": 0, "dog": 0}', "2 entries, and none of index 1"),
        (b'{"cat": "dog"}', "neither its keys nor its values"),
        (b'{"cat": true}', "neither its keys nor its values"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds no list of classes"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "classes").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_classes(tmp_path / "classes")
    assert str(tmp_path / "classes") in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        read_classes(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_classes(tmp_path)


def test_a_file_too_large(tmp_path: Path) -> None:
    (tmp_path / "classes").write_bytes(b"a" * (2**24 + 1))
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        read_classes(tmp_path / "classes")


def test_as_many_as_imagenet_has(tmp_path: Path) -> None:
    names = {str(n): [f"n{n:08d}", f"thing {n}"] for n in range(1000)}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    assert read_classes(tmp_path / "classes.json")[999] == ("n00000999", "thing 999")
