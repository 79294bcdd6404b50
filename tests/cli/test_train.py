import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from depure.data import digits, write_image
from depure.diffusion import Karras
from depure.training import accuracy
from depure.zoo import CifarResNet, load_classifier, load_denoiser
from depure.zoo.save import save_classifier

SMALL = "--updates 4 --batch 4 --images 40"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_addt_gives_a_denoiser_folder_with_its_record(run, tmp_path):
    line = f"train addt --preset digits {SMALL} --iterations 1 --out m"
    status, out, _ = run(line + " --check-images 10 --check-every 2 --check-eps 0.2")
    assert status == 0
    assert "--denoiser m" in out
    first, start = load_denoiser(str(tmp_path / "m")), load_denoiser("digits")
    assert first.schedule == start.schedule
    pairs = zip(first.parameters(), start.parameters(), strict=True)
    assert sum(float((a - b).abs().sum()) for a, b in pairs) > 0
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    for fact in ("perturbation='rbgm'", "unit=0.2", "t_max=0.2", "30 images", "betas=(0.95"):
        assert fact in card  # the preset's settings, and ten images held out
    checks = [line for line in lines(tmp_path / "m") if "score" in line]
    assert [c["update"] for c in checks] == [2, 4]
    assert set(checks[0]) == {"update", "clean", "white_box", "dw_box", "gradient_check", "score"}
    mean = sum(checks[0][k] for k in ("clean", "white_box", "dw_box")) / 3
    assert checks[0]["score"] == pytest.approx(mean, abs=1e-5)
    assert checks[0]["gradient_check"] == 1
    assert load_denoiser(str(tmp_path / "m" / "best")).schedule == start.schedule
    assert {p.name for p in (tmp_path / "m" / "samples").iterdir()} == {"000002.png", "000004.png"}
    assert not (tmp_path / "m" / "checkpoint.safetensors").exists()
    status, _, _ = run("verify-gradient --denoiser m --steps 2 --images 2")
    assert status == 0


@pytest.mark.parametrize("family", ["ddpm", "vpsde", "edm"])
def test_a_diffusion_model_of_each_family(run, tmp_path, family):
    line = f"train diffusion --preset digits --widths 8,16 {SMALL} --family {family} --out m"
    assert run(line)[0] == 0
    denoiser = load_denoiser(str(tmp_path / "m"))
    assert isinstance(denoiser.schedule, Karras) == (family == "edm")
    x = torch.zeros(1, 1, 8, 8)
    assert denoiser(x, 0.5 if family == "edm" else 50).x0.isfinite().all()
    if family != "edm":
        sampler = "sde" if family == "vpsde" else "ddim"
        line = f"purify x.png p.png --denoiser m --sampler {sampler} --steps 2"
        write_image(digits("test").x[0], tmp_path / "x.png")
        assert run(line)[0] == 0


def test_classifiers_plain_and_adversarial(run, tmp_path):
    _, out, _ = run("train classifier --preset digits --updates 120 --out c --check-images 50 "
                    "--check-every 120 --check-eps 0.1")  # fmt: skip
    assert "--classifier small-cnn:c/classifier.safetensors" in out
    loaded = load_classifier(f"small-cnn:{tmp_path / 'c' / 'classifier.safetensors'}")
    assert accuracy(loaded, digits("test")) > 0.8
    for method in ("pgd-at", "trades"):
        line = f"train adversarial --preset digits {SMALL} --method {method} --out {method}"
        status, out, _ = run(line)
        assert status == 0
        assert "accuracy on the training images" in out
    cards = [(tmp_path / m / "MODEL_CARD.md").read_text() for m in ("pgd-at", "trades")]
    assert "PGDTraining(ball=Linf(eps=0.2), steps=10, step_size=0.05)" in cards[0]
    assert "TRADES(ball=Linf(eps=0.2), beta=6.0" in cards[1]


def test_an_image_folder_and_the_order_of_settings(run, tmp_path):
    images = digits("train").sample(20)
    for i in range(20):
        write_image(images.x[i].repeat(3, 1, 1), tmp_path / f"d/{int(images.y[i])}/{i}.png")
    (tmp_path / "c.yaml").write_text("lr: 0.5\nwidths: 16,16\n")
    line = "train diffusion --preset digits --config c.yaml --data d --updates 2 --batch 4"
    assert run(line + " --widths 8,16 --out m")[0] == 0
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "lr=0.5" in card  # --config over --preset
    config = json.loads((tmp_path / "m" / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [8, 16]  # the command line over both
    assert config["in_channels"] == 3


def test_a_killed_training_continues_its_log_too(run, tmp_path, monkeypatch):
    line = f"train classifier {SMALL} --updates 60 --save-every 25 --out "
    assert run(line + "whole")[0] == 0

    from depure.cli import monitor

    real = monitor.Monitor.__call__

    def kill(self, update, *rest):
        real(self, update, *rest)
        if update == 45:
            raise KeyboardInterrupt

    monkeypatch.setattr(monitor.Monitor, "__call__", kill)
    status, _, err = run(line + "cut")
    assert status == 130
    assert "the same command continues" in err
    monkeypatch.setattr(monitor.Monitor, "__call__", real)
    assert run(line + "cut")[0] == 0
    whole, cut = (load_file(tmp_path / n / "classifier.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    updates = [found["update"] for found in lines(tmp_path / "cut")]
    assert updates == sorted(set(updates))
    assert updates[-1] == 60


@pytest.mark.slow
def test_two_processes_train_what_one_would(tmp_path):
    line = f"train addt --preset digits {SMALL} --dropout 0 --iterations 1 --out"
    here = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    one = [sys.executable, "-m", "depure", *line.split(), "one"]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    many = [*launch, "-m", "depure", *line.split(), "two"]
    for command in (one, many):
        found = subprocess.run(
            command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300
        )
        assert found.returncode == 0, found.stderr
    unets = [tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors" for n in ("one", "two")]
    a, b = (load_file(path) for path in unets)
    start = load_denoiser("digits").network.state_dict()
    apart, moved = (sum(float((a[k] - c[k]).square().sum()) ** 0.5 for k in a) for c in (b, start))
    assert apart < 0.01 * moved  # Adam's first steps magnify rounding where a gradient is tiny
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == 1  # one process logs


def test_mixed_precision_is_asked_for(run, tmp_path):
    line = f"train classifier {SMALL} --out"
    assert run(f"{line} full")[0] == 0
    assert run(f"{line} mixed --precision bf16")[0] == 0
    a, b = (load_file(tmp_path / n / "classifier.safetensors") for n in ("full", "mixed"))
    apart = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
    assert 0 < apart < 0.1


def test_tensorboard_hears_every_metric(run, fails, monkeypatch):
    import types

    heard = []

    class Writer:
        def __init__(self, folder):
            heard.append(folder)

        def add_scalar(self, name, value, update):
            heard.append((name, update))

        def flush(self):
            pass

    line = f"train classifier {SMALL} --check-images 10 --check-every 4 --tensorboard --out t"
    name = "torch.utils.tensorboard"
    monkeypatch.setitem(sys.modules, name, None)
    fails(line, "--tensorboard needs the package tensorboard: pip install tensorboard")
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(SummaryWriter=Writer))
    assert run(line)[0] == 0
    names = ("loss", "clean", "robust", "gradient_check", "score")
    assert heard == ["t/tensorboard", *((name, 4) for name in names)]


def test_bad_training_input(fails, tmp_path):
    fails("train addt --perturbation gauss", "'gauss' is not one of")
    fails("train adversarial --ball l2 --eps 9", "largest L2 change", "got 9")
    fails("train addt --lambda-unit -1", "--lambda-unit", "of at least 0")
    fails("train addt --data nowhere", "nowhere")
    fails("train addt --denoiser nowhere", "nowhere")
    fails("train addt --lr 0", "--lr", "above 0")
    fails("train addt --check-images 5000", "--check-images must be below the 1198 images")
    fails("train diffusion --widths 32,x", "--widths", "no list of numbers")
    fails("train diffusion --widths 8,8,8,8,8 --images 20", "cannot be halved 4 times")
    fails("train classifier --arch vgg", "no architecture 'vgg'")
    fails("train classifier --arch resnet20", "takes 3 channels")
    fails("train addt --preset cifar", "is not one of")
    images = digits("train").sample(12)
    for i in range(12):
        write_image(images.x[i], tmp_path / f"many/{i:02d}/a.png")
    fails(
        "train addt --data many --channels 1", "the class folder 11 is no class index: 10 classes"
    )
    fails("train addt --data many", "the denoiser takes images of 1x8x8; the data are 3x8x8")
    save_classifier(CifarResNet(20, 12), tmp_path / "colour.safetensors")
    line = "train addt --data many --channels 1 --classifier resnet20:colour.safetensors"
    fails(line, "the guide does not take these images")
