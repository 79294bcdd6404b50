"""Folders of images as their user has them: whose labels are the classifier's."""

import json

import pytest

from depure.data import digits, write_image

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHORT = "--denoiser none --eps 0.05 --attack-steps 1 --eot 1 --draws 1 --check-images 0 --out out"


@pytest.fixture
def folder(tmp_path):
    """Write 20 digits below names of their classes."""

    def write(names, root="pics", split="test"):
        some = digits(split).sample(20)
        for i in range(20):
            write_image(some.x[i], tmp_path / root / names[int(some.y[i])] / f"{i:02d}.png")
        return some

    return write


def checks_of(path):
    card = json.loads((path / "out" / "card.json").read_text())
    return {c["name"]: c for c in card["checks"]}, card


def test_names_that_are_the_classifiers(run, folder, tmp_path):
    folder(WORDS, "pics/val")
    folder(WORDS, "pics/train", "train")
    status, _, err = run(f"evaluate --data pics {SHORT}")
    assert status == 0
    assert "data: Images('pics/val': 20 images of 1x8x8, 10 classes)" in err
    checks, card = checks_of(tmp_path)
    assert card["results"]["clean"]["accuracy"]["value"] > 0.8
    assert not {"classes", "labels"} & checks.keys()


def test_sorted_order_is_a_warning_everywhere(run, folder, tmp_path):
    folder("jihgfedcba")
    status, out, err = run(f"evaluate --data pics {SHORT}")
    assert status == 0
    assert "Warning: the class folders (a, b, c, ...) are numbered in sorted order" in err
    assert "! warn  classes: the class folders (a, b, c, ...)" in out
    checks, _ = checks_of(tmp_path)
    assert checks["classes"]["verdict"] == checks["labels"]["verdict"] == "warn"
    assert "numbered in sorted order" in (tmp_path / "out" / "report.html").read_text()


def test_a_file_of_classes(run, fails, folder, tmp_path):
    folder("jihgfedcba")
    (tmp_path / "ten.json").write_text(json.dumps(dict(enumerate("jihgfedcba"))))
    assert run(f"evaluate --data pics --classes ten.json {SHORT}")[0] == 0
    checks, card = checks_of(tmp_path)
    assert card["results"]["clean"]["accuracy"]["value"] > 0.8
    assert "classes" not in checks
    (tmp_path / "nine.txt").write_text("\n".join("jihgfedcb"))
    (tmp_path / "eleven.txt").write_text("\n".join("jihgfedcbak"))
    line = f"evaluate --data pics {SHORT} --classes"
    fails(f"{line} nine.txt", "--data: 1 of 10 class folders are none of the classifier's 9", ": a")
    fails(f"{line} eleven.txt", "--classes names 11 classes, but the classifier tells 10 apart")
    fails(f"{line} none.txt", "--classes: none.txt does not exist")


def test_subsets(run, fails, folder, tmp_path):
    folder("3333333777")
    assert sorted(p.name for p in (tmp_path / "pics").iterdir()) == ["3", "7"]
    assert run("verify-gradient --data pics --steps 1 --images 2 --json")[0] == 0
    folder(["cow", *["pig"] * 9], "few")
    fails(
        f"evaluate --data few {SHORT}", "2 class folders with images (cow, pig)", "--classes FILE"
    )


def test_analyses_say_what_was_assumed(run, folder, tmp_path):
    folder("abcdefghij")
    line = (
        "analyse purification --data pics --images 4 --steps 2 --attack-steps 1 --eot 1 --draws 2"
    )
    status, _, err = run(f"{line} --out found")
    assert status == 0, err
    assert err.count("Warning: the class folders") == 1
    settings = json.loads((tmp_path / "found" / "settings.json").read_text())
    assert "numbered in sorted order" in settings["assumed"]


def test_training_takes_train_and_the_guides_classes(run, fails, folder, tmp_path):
    folder(WORDS, "pics/train", "train")
    folder("abcdefghij", "pics/val")
    short = "--channels 1 --updates 1 --batch 2 --out model"
    status, _, err = run(f"train addt --data pics {short} --iterations 1")
    assert status == 0, err
    assert "data: Images('pics/train': 20 images" in err
    assert "Warning: the class folders" not in err
    folder("abcdefghij", "few/train")
    status, _, err = run(f"train addt --data few {short}2 --iterations 1")
    assert "Warning: the class folders (a, b, c, ...) are numbered in sorted order" in err
    fails(
        f"train classifier --data pics/val --classes pics {short}3", "--classes: pics is a folder"
    )
