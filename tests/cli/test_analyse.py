"""`depure analyse`: every instrument from its command line, on a few digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from depure.analysis.inception import FIDInception

TINY = "--images 8 --steps 2 --attack-steps 2 --eot 2 --draws 2"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            "stochasticity --levels 0,1 --pools 1,2 --beside ADDT=digits-addt",
            marks=pytest.mark.slow,
        ),
        "landscape --points 3",
        "trajectories",
        "purification --t-stars 0.05,0.1 --grid-steps 1,2",
        pytest.param("gradients --eots 1,2 --reference 4", marks=pytest.mark.slow),
        "transfer --seeds 0,1",
        "quality",
    ],
    ids=lambda line: line.split()[0],
)
def test_an_instrument(run, tmp_path, line):
    command = f"analyse {line} {TINY} --out a"
    status, out, err = run(command)
    assert status == 0, err
    assert "a/figure.png" in out
    folder = tmp_path / "a"
    assert {"arrays.npz", "settings.json", "figure.png", "figure.pdf"} <= {
        p.name for p in folder.iterdir()
    }
    assert json.loads((folder / "settings.json").read_text())
    before = dict(np.load(folder / "arrays.npz", allow_pickle=False))
    assert run(command)[0] == 0  # from its cells
    again = dict(np.load(folder / "arrays.npz", allow_pickle=False))
    assert all(np.array_equal(before[k], again[k], equal_nan=before[k].dtype.kind == "f")
               for k in before)  # fmt: skip


def test_quality_on_the_features_of_the_published_fid(run, tmp_path, monkeypatch):
    monkeypatch.setattr("depure.analysis.inception._SIDE", 75)  # a sixteenth of the time
    torch.save(FIDInception().state_dict(), tmp_path / "random.pth")
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(grey):
        folder = tmp_path / "real" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    line = "analyse quality --images 4 --steps 2 --reference-data real --out a"
    assert run(line)[0] == 0
    kept = {p.name for p in (tmp_path / "a" / "cells").iterdir()}
    status, out, err = run(f"{line} --features random.pth")
    assert status == 0, err
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    mark = settings["features_weights"]
    said = " ".join(out.split())
    assert f"Inception 2015 with unrecognised weights {mark} of random.pth" in said
    assert "smallest set: 4 images" in said
    with np.load(tmp_path / "a" / "arrays.npz") as arrays:
        assert arrays["dimensions"] == 2048
        assert mark in str(arrays["features"])
    new = {p.name for p in (tmp_path / "a" / "cells").iterdir()} - kept
    assert len(new) == 4  # features; the images were there
    assert all("features" in name for name in new)
    status, _, err = run(f"{line} --features missing.pth")
    assert status == 1
    assert "pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases" in " ".join(
        err.split()
    )
    assert "not the published FID" in " ".join(run("analyse quality --help")[1].split())


@pytest.mark.slow
def test_explain(run, tmp_path):
    status, out, err = run(f"analyse explain {TINY} --points 3 --out e")
    assert status == 0, err
    page = (tmp_path / "e" / "explain.html").read_text()
    for words in ("remove perturbations, or hide them", "ADDT against digits", "converged",
                  "depure analyse explain"):  # fmt: skip
        assert words in page
    assert page.count("data:image/png;base64,") == 6
    assert "How much is left when the noise is known?" in out
    assert (tmp_path / "e" / "landscape" / "ADDT" / "arrays.npz").exists()


def test_a_folder_of_another_analysis_is_refused(run, fails, tmp_path):
    line = f"analyse landscape --points 3 {TINY} --out a"
    assert run(line)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    fails(f"{line} --seed 1", "a holds another analysis (options.seed: 0, now 1)")
    fails(f"analyse trajectories {TINY} --out a", "another analysis (instrument: landscape, now")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    assert run(line)[0] == 0
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


def test_bad_input(fails):
    fails(f"analyse stochasticity {TINY} --beside digits-addt", "--beside must be NAME=DENOISER")
    fails(f"analyse stochasticity {TINY} --beside digits=digits-addt", "names 'digits' twice")
    fails(f"analyse landscape {TINY} --attack square", "this instrument follows PGD")
    fails(f"analyse stochasticity {TINY} --levels a", "no list of numbers such as 1,2")
    fails(f"analyse stochasticity {TINY} --denoiser none", "no noise")


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/tmp/x", "..", ".", "", "[/b]", "$x$", "n" * 65]
)
def test_a_name_beside_stays_below_out(fails, tmp_path, name):
    fails(f"analyse explain {TINY} --out out --beside {name}=digits-addt", "--beside must be NAME")
    assert not list(tmp_path.iterdir())
