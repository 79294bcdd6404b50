"""Places where a command cannot write, or whose names are no text: a sentence that names the file.

A read-only folder is imitated, for root may write everywhere; a full disk is a limit on the size of
files, which fails where a full disk does: inside the writer.
"""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from depure.cli.monitor import Monitor
from depure.data import digits, write_image
from depure.zoo import load_classifier

QUICK = "--images 2 --eps 0.15 --steps 1 --attack-steps 1 --eot 1 --draws 2 --check-images 0"
COMMANDS = {
    "evaluate": f"evaluate {QUICK} --gradient-check short --out out",
    "train": "train classifier --updates 4 --batch 4 --images 40 --arch small-cnn --out out",
    "denoiser": "train diffusion --preset digits --widths 8,16 --updates 2 --batch 4 --out out",
    "purify": "purify in out --steps 1",
    "analyse": "analyse landscape --points 3 --images 2 --steps 1 --attack-steps 1 --out out",
}


@pytest.fixture
def images(tmp_path):
    for i, image in enumerate(digits("test").x[:2]):
        write_image(image, tmp_path / "in" / f"{i}.png")


@contextmanager
def small_disk(limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def temporary(folder):
    return [p.name for p in folder.rglob(".*")]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("limit", [0, pytest.param(60, marks=pytest.mark.slow)])
def test_a_full_disk(run, fails, images, tmp_path, name, limit):
    with small_disk(limit):
        err = fails(COMMANDS[name], "cannot write", "out")
    assert [line[:6] for line in err.splitlines()].count("Error:") == 1, err
    assert not temporary(tmp_path)
    status, _, err = run(COMMANDS[name])
    assert status == 0, err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_folder(run, fails, images, tmp_path, monkeypatch, name):
    (tmp_path / "out").mkdir()
    really = os.open

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(args[0]))

    def refuse_new(path, flags, *args, **kwargs):
        return (refuse if flags & os.O_CREAT else really)(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse_new)
        patch.setattr(os, "mkdir", refuse)
        for method in ("touch", "unlink"):
            patch.setattr(Path, method, refuse)
        err = fails(COMMANDS[name], "cannot write", "out", "Read-only file system")
    assert [line[:6] for line in err.splitlines()].count("Error:") == 1, err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("evaluate", "analyse") else n
        for n in COMMANDS
    ],
)
def test_a_folder_whose_name_is_no_text(run, images, tmp_path, name):
    odd = os.fsdecode(b"o\xff")
    line = COMMANDS[name].replace(" out", f" {odd}")
    status, out, err = run(line)
    assert status == 0, err
    assert "\\udcff" in out
    assert not (tmp_path / "out").exists()
    before = {p: p.read_bytes() for p in (tmp_path / odd).rglob("*.*")}
    assert before
    assert not temporary(tmp_path)
    assert run(line)[0] == 0  # from what is there
    assert {p: p.read_bytes() for p in before} == before


def test_a_training_in_such_a_folder_goes_on(run, tmp_path, monkeypatch):
    odd = os.fsdecode(b"o\xff")
    line = COMMANDS["train"].replace(" out", f" {odd}")
    real = Monitor.__call__

    def stop(self, update, *rest):
        real(self, update, *rest)
        if update == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "__call__", stop)
        assert run(f"{line} --save-every 2")[0] == 130
    assert (tmp_path / odd / "checkpoint.safetensors").exists()
    assert run(f"{line} --save-every 2")[0] == 0
    assert run(COMMANDS["train"])[0] == 0
    a, b = (tmp_path / n / "classifier.safetensors" for n in (odd, "out"))
    assert a.read_bytes() == b.read_bytes()
    assert load_classifier(f"small-cnn:{a}")(digits("test").x[:2]).shape == (2, 10)


def test_an_image_whose_name_is_no_text(run, fails, images, tmp_path):
    odd = tmp_path / "in" / os.fsdecode(b"\xff.png")
    odd.write_bytes((tmp_path / "in" / "0.png").read_bytes())
    assert run("purify in out --steps 1")[0] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0.png", "1.png", odd.name}
    odd.write_bytes(b"no image")
    fails("purify in again --steps 1", "cannot read", "in/\\udcff.png")
