"""The command line as its user meets it: `main()` with real arguments, output and exit status."""

import json
import os

import pytest
import torch

from depure.data import digits, read_image, write_image

SMALL = "--images 6 --eps 0.15 --steps 2 --attack-steps 2 --eot 2 --draws 3 --shard-size 4"


def test_evaluate_report_and_compare(run, fails, tmp_path):
    status, out, _ = run(f"evaluate {SMALL} --check-images 2 --out a")
    assert status == 0
    assert "PASSED" in out
    assert "null control" in out
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["results"]["images"] == 6
    assert card["command"].startswith("depure evaluate --images 6")
    assert card["setting"]["attack"]["steps"] == 2
    assert (tmp_path / "a" / "report.html").exists()
    status, out, _ = run(f"evaluate {SMALL} --check-images 0 --out b --knows forward,reverse")
    assert status == 0
    assert json.loads((tmp_path / "b" / "card.json").read_text())["results"]["draws"] == 1
    (tmp_path / "a" / "report.html").unlink()
    assert run("report a")[0] == 0
    assert (tmp_path / "a" / "report.html").exists()
    assert run("report a b --out both.html --title Two")[0] == 0
    assert "Two" in (tmp_path / "both.html").read_text()


def test_config_file_recipe_and_precedence(run, fails, tmp_path):
    (tmp_path / "c.yaml").write_text("eps: 8/255\nattack-steps: 1\neot: 1\ndraws: 2\nsteps: 1\n")
    status, _, _ = run("evaluate --config c.yaml --images 2 --draws 3 --check-images 0 --out a")
    assert status == 0
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["setting"]["threat"]["ball"] == {"name": "Linf", "eps": 8 / 255}
    assert card["results"]["draws"] == 3
    assert card["setting"]["attack"]["steps"] == 1
    (tmp_path / "d.yaml").write_text("epz: 0.1\n")
    fails("evaluate --config d.yaml", "sets epz", "does not know")
    (tmp_path / "e.yaml").write_text("a: [1\n")
    fails("evaluate --config e.yaml", "not valid YAML")
    (tmp_path / "f.yaml").write_text("- 1\n")
    fails("evaluate --config f.yaml", "option: value")
    fails("evaluate --config nothing", "no file and no recipe", "diffpure-cifar10-linf")


def test_yaml_is_data(run, fails, tmp_path):
    (tmp_path / "bad.yaml").write_text("data: !!python/object/apply:os.system ['touch owned']\n")
    fails("evaluate --config bad.yaml", "not valid YAML")
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_parts_and_join(run, fails, tmp_path):
    assert run(f"evaluate {SMALL} --check-images 0 --out whole")[0] == 0
    status, out, _ = run(f"evaluate {SMALL} --check-images 0 --out a --part 1/2")
    assert status == 0
    assert "1 of 2 shards are still to be computed" in out
    assert run(f"evaluate {SMALL} --check-images 0 --out b --part 2/2")[0] == 0
    assert run(f"evaluate {SMALL} --check-images 0 --out a --join b")[0] == 0
    cards = [json.loads((tmp_path / f / "card.json").read_text()) for f in ("whole", "a")]
    assert cards[0]["results"] == cards[1]["results"]
    fails(f"evaluate {SMALL} --out c --part 3/2", "--part must be I/N")


def test_verify_gradient(run):
    status, out, _ = run("verify-gradient --images 2 --steps 2 --json --approximations straight")
    assert status == 0
    found = json.loads(out)
    assert found["passed"]
    assert [r["name"] for r in found["rows"]][-1] == "Straight()"
    status, out, _ = run("verify-gradient --images 2 --steps 2 --backprop straight")
    assert status == 1
    assert "FAILED" in out


@pytest.fixture
def folder(tmp_path):
    images = digits("test")
    for i in range(3):
        write_image(images.x[i], tmp_path / "in" / "deep" / f"{i}.png")
    return tmp_path / "in"


def test_purify_folder(run, fails, folder, tmp_path):
    status, out, _ = run("purify in out --steps 2 --contact-sheet sheet.png")
    assert status == 0
    assert "purified 3 image(s)" in out
    names = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.png")
    )
    assert names == ["deep/0.png", "deep/1.png", "deep/2.png"]
    assert (tmp_path / "sheet.png").exists()
    first = read_image(tmp_path / "out" / "deep" / "0.png", channels=1)
    assert 0 < (first - read_image(folder / "deep" / "0.png", channels=1)).abs().mean() < 0.2
    status, out, _ = run("purify in out --steps 2")
    assert "3 output(s) existed" in out
    # The noise hangs on the name alone: without its neighbours an image comes out the same.
    (folder / "deep" / "1.png").unlink()
    assert run("purify in again --steps 2")[0] == 0
    second = read_image(tmp_path / "again" / "deep" / "0.png", channels=1)
    torch.testing.assert_close(first, second, atol=1.5 / 255, rtol=0)


def test_purify_skips_the_unreadable_and_says_so(run, fails, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"no image")
    err = fails("purify in out --steps 2", "bad.png")
    assert err.count("Error") == 1
    assert len(list(tmp_path.glob("out/**/*.png"))) == 3


def test_purify_removes_what_a_killed_run_left(run, folder, tmp_path):
    left = tmp_path / "out" / "deep" / ".0.png.host-1-00000000.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half an image")
    os.utime(left, (0, 0))  # older than a day
    run("purify in out --steps 2")
    assert not left.exists()
    assert (left.parent / "0.png").exists()


def test_purify_one_file(run, fails, folder, tmp_path):
    assert run("purify in/deep/0.png one.png --steps 2")[0] == 0
    assert (tmp_path / "one.png").exists()
    fails("purify missing.png x.png", "missing.png does not exist")
    fails("purify in x --denoiser none", "purifies nothing")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evaluate --data nowhere", ["nowhere", "does not exist"]),
        ("evaluate --images 100000", ["cannot pick 100000", "1 to 599"]),
        ("evaluate --classifier vgg:x", ["no classifier 'vgg:x'", "resnet56"]),
        ("evaluate --classifier resnet56:x.safetensors", ["x.safetensors"]),
        ("evaluate --denoiser nowhere", ["nowhere"]),
        ("evaluate --sampler dpm", ["'dpm' is not one of"]),
        ("evaluate --backprop magic", ["backprop must be", "'magic'"]),
        ("evaluate --backprop surrogate:x", ["backprop must be"]),
        ("evaluate --knows forwrd", ["knows names the stage 'forwrd'", "forward, reverse"]),
        ("evaluate --sampler ddim --knows reverse", ["'reverse'", "draws noise at: forward"]),
        ("evaluate --eps 0", ["eps must be positive"]),
        ("evaluate --eps eight", ["not a number or a fraction"]),
        ("evaluate --t-star 1.5", ["t_star must lie in (0, 1]"]),
        ("evaluate --steps 500", ["steps must be at most 100"]),
        ("evaluate --clip-x0 --sampler sde", ["--clip-x0 applies to ddpm and ddim"]),
        ("evaluate --eta 0.5", ["--eta applies to ddim"]),
        ("evaluate --device tpu9", ["device 'tpu9' is not available"]),
        ("evaluate --draws 0", ["--draws"]),
        ("report nowhere", ["nowhere"]),
        ("frobnicate", ["No such command"]),
    ],
)
def test_bad_input_gets_one_sentence(fails, line, words):
    fails(line, *words)


def test_truncated_weights(run, fails, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    fails("evaluate --classifier small-cnn:w.safetensors", "w.safetensors", "damaged")


def test_images_that_do_not_fit(run, fails, tmp_path):
    for label in "abcdefghijk":
        write_image(torch.rand(1, 8, 8), tmp_path / "d" / label / "0.png")
    for denoiser in ("none", "digits"):
        line = f"evaluate --data d --denoiser {denoiser} --steps 2"
        fails(line, "there are 11 class folders", "tells 10 classes apart", "--classes FILE")
    write_image(torch.rand(1, 9, 8), tmp_path / "d" / "a" / "0.png")
    fails("evaluate --data d", "images must share one size", "9")


def test_another_configuration_in_the_folder(run, fails, tmp_path):
    assert run(f"evaluate {SMALL} --check-images 0 --out a")[0] == 0
    before = (tmp_path / "a" / "card.json").read_bytes()
    fails(f"evaluate {SMALL} --out a --seed 7", "seed: 0, now 7", "choose another folder")
    assert (tmp_path / "a" / "card.json").read_bytes() == before


def test_help_teaches(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in ("demo", "evaluate", "verify-gradient", "purify", "report"):
        assert name in out
        assert run(f"{name} --help")[0] == 0


def test_yaml_values_are_judged_like_typed_ones(run, fails, tmp_path):
    for line in ("steps: 2.7", "seed: true", "eps: 1e400", "out:", "steps: {a: 1}"):
        (tmp_path / "c.yaml").write_text(line + "\n")
        fails("evaluate --config c.yaml", line.split(":")[0])


@pytest.mark.slow
def test_knows_adds_up_and_the_command_repeats_the_run(run, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 2\nknows: [forward]\n")
    line = f"evaluate --config c.yaml {SMALL} --check-images 0 --out a"
    assert run(line)[0] == 0
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["setting"]["threat"]["knows"] == ["forward"]
    assert "--config" not in card["command"]
    again = card["command"].removeprefix("depure ").replace("--out a", "--out b")
    assert run(again)[0] == 0
    other = json.loads((tmp_path / "b" / "card.json").read_text())
    assert other["results"] == card["results"]
    both = f"evaluate {SMALL} --check-images 0 --knows reverse --knows forward --out c"
    assert run(both)[0] == 0
    card = json.loads((tmp_path / "c" / "card.json").read_text())
    assert card["setting"]["threat"]["knows"] == ["forward", "reverse"]


def test_purify_leaves_out_a_misfit_and_says_so(fails, folder, tmp_path):
    write_image(torch.rand(1, 3, 3), folder / "small.png")
    fails("purify in out --steps 2", "small.png", "trained on 8x8", "--image-size")
    assert len(list(tmp_path.glob("out/**/*.png"))) == 3
    fails("purify in in --steps 2", "are the same")


def test_images_of_another_size_than_the_denoiser(fails, tmp_path):
    for label in "ab":
        write_image(torch.rand(1, 16, 16), tmp_path / "d" / label / "0.png")
    fails("evaluate --data d --steps 2", "trained on 8x8 images; got 16x16")
