from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from depure.data import Images, digits, match_classes
from depure.data.classes import _known, number_classes

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Imagenette's classes and their places among ILSVRC-2012's, as its authors list them.
IMAGENETTE = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["0", "1", "10", "2"], 11, [0, 1, 10, 2]),
        (["3", "7"], 10, [3, 7]),
        (["003", "007"], 10, [3, 7]),
        (list(IMAGENETTE), 1000, list(IMAGENETTE.values())),
        (["dog", "cat"], 10, [5, 3]),
        (["Airplane", "TRUCK"], 10, [0, 9]),
        (["sweet pepper", "Maple-Tree"], 100, [83, 47]),
        (["eight", "four", "zero"], 10, [8, 4, 0]),
        (["ant", "Bee_hive"], ["bee hive", "cat", "Ant"], [2, 0]),
        (["A", "a"], ["a", "A"], [1, 0]),
        (["1", "3"], ["1", "2", "3"], [0, 2]),
        (["0", "2"], ["ant", "bee", "cat"], [0, 2]),
        (["n01443537", "shark"], [["n01440764", "tench"], ["n01443537"], ["n1", "shark"]], [1, 2]),
        (["caf\u00e9"], ["tea", "cafe\u0301"], [1]),  # as Linux and as macOS write it
    ],
)
def test_names_that_say_their_class(
    names: list[str], classes: int | Sequence[str], labels: list[int]
) -> None:
    found = number_classes(names, classes)
    assert list(found.labels) == labels
    assert len(found.classes) == (classes if isinstance(classes, int) else len(classes))
    assert not found.assumed


def test_sorted_order_where_nothing_else_is_known() -> None:
    for classes in (2, None):
        found = number_classes(["ant", "bee"], classes)
        assert found.labels == (0, 1)
        assert "sorted order" in found.assumed
        assert "--classes FILE" in found.assumed
    found = number_classes(list(IMAGENETTE), 10)
    assert found.labels == tuple(range(10))
    assert found.assumed
    assert number_classes(["0", "2"], None).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (
            ["ant", "bee"],
            3,
            "2 class folders with images .* 3 classes apart: give .*--classes FILE",
        ),
        (["1", "10"], 10, "class folder 10 is no class index: 10 classes are numbered from 0 to 9"),
        (["1", "2024999"], None, "2024999 is no class index: 100,000 classes at most"),
        (["1", "01"], 10, "'1' and '01' are both class 1"),
        (["1", "2", "cat"], 3, r"some .* by index \(1, 2\) and some not \(cat\)"),
        (["n01440764", "n99999999"], 1000, "1 of 2 class folders are none .*: n99999999; rename"),
        (["n01440764", "bee"], 1000, "1 of 2 class folders are none .*: bee; rename"),
        (list(IMAGENETTE), 1001, "1001 classes .*background: give .*--classes FILE"),
        (["ant", "wasp", "cow"], ["ant", "bee"], r"2 of 3 .*\(ant, bee\): wasp, cow; rename"),
        (["cat_a", "cat-a"], ["cat a", "dog"], "'cat_a' and 'cat-a' are both class 0"),
        (["cat"], ["Cat", "CAT"], "'cat' fits classes 0, 1 alike"),
        (["cat"], ["cat", "dog", "cat"], "classes 0 and 2 are both named 'cat'"),
        (["cat"], ["cat", ""], "class 1 has no name"),
        (["cat"], ["cat", []], "class 1 has no name"),
        (["cat"], [], "no class is named"),
        (["cat"], 0, "at least 1, or the class names; got 0"),
    ],
)
def test_names_that_do_not_fit(names: list[str], classes: int | Sequence[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        number_classes(names, classes)


@pytest.mark.parametrize("classes", ["cat", 2.0, True, b"cat"])
def test_classes_of_a_wrong_kind(classes: int) -> None:
    with pytest.raises(TypeError, match="classes must be"):
        number_classes(["cat"], classes)


def test_the_lists() -> None:
    wnids = _known("imagenet")
    assert len(wnids) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert all(re.fullmatch("n[0-9]{8}", name) for name in wnids)
    assert list(_known("cifar10")) == CIFAR10
    fine = _known("cifar100")
    assert (len(set(fine)), fine[0], fine[90], fine[99]) == (100, "apple", "train", "worm")
    assert list(fine) == sorted(fine)


def test_images_that_are_read_already() -> None:
    x, y = torch.zeros(3, 1, 4, 4), torch.tensor([0, 2, 1])
    read = Images(x, y, torch.tensor([5, 6, 9]), ("dog", "frog", "cat"), "pets", "sorted order")
    found = match_classes(read, 10)
    assert found.y.tolist() == [5, 3, 6]
    assert found.index.tolist() == [5, 6, 9]
    assert (len(found.classes), found.name, found.assumed) == (10, "pets", "")
    again = match_classes(found, 10)
    assert again.y.tolist() == found.y.tolist()


def test_images_numbered_for_certain_stay() -> None:
    some = digits("test").sample(20)
    assert match_classes(some, 10).y.tolist() == some.y.tolist()
    pets = Images(some.x[:1], some.y[:1] * 0, some.index[:1], ("ant", "bee"), "pets")
    assert match_classes(pets, 1000) is pets
    turned = match_classes(some, [str(9 - n) for n in range(10)])
    assert turned.y.tolist() == (9 - some.y).tolist()
