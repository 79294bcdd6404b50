"""The folder of a training: whatever stops it, the same command ends with the same files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from depure.cli.train_folder import _portable
from depure.data import digits, write_image
from depure.files import locked
from depure.zoo import save as saver

CLASSIFIER = (
    "train classifier --images 24 --updates 12 --batch 8 --save-every 4 --check-every 6 "
    "--check-images 8 --arch small-cnn-8 --out m"
)
ADDT = "train addt --preset digits --images 16 --updates 2 --batch 8 --iterations 1 --out m"
CHECKPOINTS = {"checkpoint.safetensors", "checkpoint.previous.safetensors"}


@pytest.fixture
def within(run, tmp_path, monkeypatch):
    """Run a line in a folder of that name."""

    def call(line, name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        return run(line)

    return call


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """As SIGINT, a power cut or SIGKILL, between two lines."""


def kill_at_replacement(monkeypatch, at, after=False, name=""):
    """Stop at the `at`-th time that a file (of this name) takes its place, before or after."""
    real, calls = Path.replace, []

    def replace(self, target):
        if Path(target).parts[0] != "m" or name not in str(target):  # of checks, elsewhere
            return real(self, target)
        calls.append(target)
        if len(calls) == at and not after:
            raise Killed
        result = real(self, target)
        if len(calls) == at:
            raise Killed
        return result

    monkeypatch.setattr(Path, "replace", replace)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("line", [CLASSIFIER, ADDT], ids=["classifier", "addt"])
def test_stopped_wherever_a_file_takes_its_place_it_ends_with_the_same_files(
    within, tmp_path, monkeypatch, line
):
    calls = kill_at_replacement(monkeypatch, 0)
    assert within(line, "whole")[0] == 0
    whole, count = files(tmp_path / "whole"), len(calls)
    assert not any("checkpoint" in name or ".tmp" in name for name in whole)
    assert count >= 8
    for at in range(1, count + 1):
        for after in (False, True):
            name = f"{at}-{after}"
            with monkeypatch.context() as patch:
                kill_at_replacement(patch, at, after)
                with pytest.raises(Killed):
                    within(line, name)
            assert within(line, name)[0] == 0
            assert files(tmp_path / name) == whole, name


@pytest.mark.parametrize(
    "place", ["save", *(pytest.param(p, marks=pytest.mark.slow) for p in ("check", "claim"))]
)
def test_killed_by_the_system_it_leaves_nothing_behind(within, tmp_path, place):
    code = (
        "import os, sys\n"
        "from depure import files\n"
        "from depure.cli import monitor, train_folder\n"
        "from depure.cli.main import main\nfrom depure.zoo import save\n"
        "where, name = {'check': (monitor.Monitor, '_check'), 'save': (save, 'fingerprint'),\n"
        "               'claim': (train_folder.Folder, 'claim')}[sys.argv.pop(1)]\n"
        "setattr(where, name, lambda *a, **k: os.kill(os.getpid(), 9))\n"
        "sys.argv[0] = 'depure'\n"
        "main()\n"
    )
    (tmp_path / "cut").mkdir()
    command = [sys.executable, "-c", code, place, *CLASSIFIER.split()]
    found = subprocess.run(command, cwd=tmp_path / "cut", capture_output=True, timeout=120)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert [n for n in files(tmp_path / "cut" / "m") if "lock" in n]
    assert within(CLASSIFIER, "whole")[0] == within(CLASSIFIER, "cut")[0] == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("line", "obstacle", "folder"),
    [
        (CLASSIFIER, "classifier.safetensors", True),
        pytest.param(CLASSIFIER, "MODEL_CARD.md", True, marks=pytest.mark.slow),
        pytest.param(CLASSIFIER, "best", False, marks=pytest.mark.slow),
        (CLASSIFIER, "metrics.jsonl", True),
        (ADDT, "unet", False),
        pytest.param(ADDT, "scheduler", False, marks=pytest.mark.slow),
        pytest.param(ADDT, "samples", False, marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_written_is_named_and_the_checkpoint_outlives_it(
    within, tmp_path, line, obstacle, folder
):
    path = tmp_path / "cut" / "m" / obstacle
    path.parent.mkdir(parents=True)
    path.mkdir() if folder else path.write_text("x")
    status, _, err = within(line, "cut")
    assert status == 1
    assert f"cannot write m/{obstacle}" in err
    assert "checkpoint.safetensors" in files(path.parent)
    path.rmdir() if folder else path.unlink()
    assert within(line, "cut")[0] == within(line, "whole")[0] == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_full_disk_at_the_last_save(within, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saver, "save_tensors", full)
        status, _, err = within(CLASSIFIER.replace("--check-images 8", ""), "cut")
    assert status == 1
    assert "cannot write m/classifier.safetensors (No space left on device)" in err
    assert set(files(tmp_path / "cut" / "m")) >= CHECKPOINTS
    for name in ("cut", "whole"):
        assert within(CLASSIFIER.replace("--check-images 8", ""), name)[0] == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_finished_it_says_so_and_does_nothing(run, tmp_path):
    assert run(CLASSIFIER)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*") if p.is_file()}
    for more in ("", " --save-every 3"):  # which changes nothing of the result
        status, out, _ = run(CLASSIFIER + more)
        assert status == 0
        assert "finished before: m holds the model" in out
        assert "--classifier small-cnn:m/classifier.safetensors" in out
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--seed 9", "plan.seed: 0, now 9"),
        ("--lr 1e30", "plan.lr: 0.003, now 1e+30"),
        ("--arch small-cnn-4", "network"),
        ("--images 23", "images.count: 16, now 15"),
        ("--check-eps 0.1", "checks.eps"),
        ("--check-every 5", "checks.every: 6, now 5"),
        ("--precision bf16", "precision: float32, now bf16"),
        ("--flip", "augment"),
    ],
)
def test_another_training_is_refused_and_changes_nothing(run, fails, tmp_path, change, words):
    assert run(CLASSIFIER)[0] == 0
    before = files(tmp_path)
    fails(f"{CLASSIFIER} {change}", "m holds a training of another configuration", words)
    assert files(tmp_path) == before


def test_images_that_changed_between_two_parts(run, fails, tmp_path, monkeypatch):
    images = digits("train").sample(8)
    for i in range(8):
        write_image(images.x[i], tmp_path / f"d/{int(images.y[i])}/{i}.png")
    line = (
        "train classifier --data d --channels 1 --updates 4 --batch 4 --save-every 2 "
        "--arch small-cnn-4 --out m"
    )
    with monkeypatch.context() as patch:
        kill_at_replacement(patch, 2, name="checkpoint.safetensors")
        with pytest.raises(Killed):
            run(line)
    write_image(1 - images.x[0], tmp_path / f"d/{int(images.y[0])}/0.png")
    fails(
        line, "m/checkpoint.previous.safetensors belongs to another configuration (another images)"
    )
    write_image(images.x[0], tmp_path / f"d/{int(images.y[0])}/0.png")
    assert run(line)[0] == 0
    write_image(1 - images.x[0], tmp_path / f"d/{int(images.y[0])}/0.png")
    fails(line, "another configuration (images.fingerprint: ")


def test_a_model_that_is_not_what_was_written(run, fails, tmp_path):
    assert run(CLASSIFIER)[0] == 0
    whole, file = files(tmp_path), tmp_path / "m" / "classifier.safetensors"
    file.write_bytes(whole["m/classifier.safetensors"][:-1] + b"\0")
    fails(CLASSIFIER, "m/classifier.safetensors is not what this training wrote", "delete it")
    file.unlink()
    status, _, err = run(CLASSIFIER)
    assert status == 0
    assert "Warning: m/classifier.safetensors is missing: the training runs again" in err
    assert files(tmp_path) == whole


def test_a_model_without_a_record_is_not_replaced(fails, run, tmp_path):
    assert run(CLASSIFIER)[0] == 0
    (tmp_path / "m" / "training.json").unlink()
    before = files(tmp_path)
    fails(CLASSIFIER, "m holds a model, m/classifier.safetensors, but no training.json")
    assert files(tmp_path) == before
    (tmp_path / "m" / "training.json").write_text("{")
    fails(CLASSIFIER, "m/training.json is damaged")


def test_a_loss_that_is_not_finite_changes_nothing(fails, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "metrics.jsonl").write_text('{"update": 1, "loss": 2.0}\n')
    before = files(tmp_path)
    fails(f"{CLASSIFIER} --lr 1e30", "Error: the loss is nan at update 2: lower the learning rate")
    assert files(tmp_path) == before


TAILS = (b"\xff\n", b"[1]\n", b"[" * 100_000)


@pytest.mark.parametrize(
    "tail", [b'{"update": 4, "lo', *(pytest.param(t, marks=pytest.mark.slow) for t in TAILS)]
)
def test_a_cut_line_of_the_metrics_is_dropped_and_told(within, tmp_path, tail, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at_replacement(patch, 3, name="checkpoint.safetensors")
        with pytest.raises(Killed):
            within(CLASSIFIER, "cut")
    metrics = tmp_path / "cut" / "m" / "metrics.jsonl"
    assert metrics.read_bytes()
    metrics.write_bytes(metrics.read_bytes() + tail)
    status, _, err = within(CLASSIFIER, "cut")
    assert status == 0
    assert "Warning: m/metrics.jsonl holds a line that is cut short or damaged" in err
    assert within(CLASSIFIER, "whole")[0] == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_two_trainings_at_once_in_one_folder(run, fails, tmp_path):
    (tmp_path / "m").mkdir()
    with locked(tmp_path / "m" / "training.json"):
        fails(CLASSIFIER, "another process is at work on m")
    assert run(CLASSIFIER)[0] == 0


def test_a_folder_that_cannot_be_made(fails, tmp_path):
    (tmp_path / "m").write_text("x")
    fails(CLASSIFIER, "cannot write m")
    assert (tmp_path / "m").read_text() == "x"


def test_the_card_has_no_path_of_a_machine(run, tmp_path):
    assert run(CLASSIFIER.replace("--out m", f"--out {tmp_path / 'm'}"))[0] == 0
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "--out m`" in card
    assert str(tmp_path) not in card
    assert f"torch {torch.__version__}, cpu" in card
    assert json.loads((tmp_path / "m" / "training.json").read_text())["finished"]


def test_words_with_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    words = {
        f"{here}/a/b": "a/b",
        f"--out={here}/a": "--out=a",
        "small-cnn:/x/y/c.safetensors": "small-cnn:c.safetensors",
        f"resnet20:{here}/c.safetensors": "resnet20:c.safetensors",
        "/x/y": "y",
        "a/b": "a/b",
        "8/255": "8/255",
        "../m": "../m",
    }
    assert {word: _portable(word) for word in words} == words
