"""What is typed is checked where it enters, and named in the error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from depure.cli.analyse import command as analyse
from depure.cli.evaluate import command as evaluate
from depure.cli.main import cli
from depure.threat import Linf

SMALL = ["--images", "2", "--steps", "1", "--draws", "2", "--attack-steps", "1", "--eot", "1",
         "--check-images", "0"]  # fmt: skip


@pytest.mark.parametrize("eps", ["1e99999999", "nan", "inf", "1/0", "²", "", "1/2/3", "-inf"])
def test_numbers_are_finite_and_cost_nothing_to_read(eps: str) -> None:
    with pytest.raises(click.BadParameter, match="a number or a fraction"):
        evaluate.make_context("evaluate", ["--eps", eps])


def test_fractions_are_read() -> None:
    assert evaluate.make_context("evaluate", ["--eps", "8/255"]).params["eps"] == 8 / 255


@pytest.mark.parametrize("limit", ["inf", "nan", "-1"])
def test_memory_limits_are_numbers(limit: str) -> None:
    with pytest.raises(click.BadParameter, match="number"):
        evaluate.make_context("evaluate", ["--memory-limit", limit])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "²/²"], "--part must be I/N"),
        (["--backprop", "surrogate:²"], "backprop must be"),
        (["--device", "x"], "device 'x' is not available"),
        (["--eps", "8"], r"at most 1, .*did you mean 8/255\?"),
        (["--config", "diffpure-cifar10-linf"], "not for the bundled digits: give --data"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, click.UsageError), match=message):
        evaluate.main([*SMALL, "--out", str(tmp_path), *words], standalone_mode=False)


def test_eps_above_one_is_refused_in_linf() -> None:
    with pytest.raises(ValueError, match="did you mean 8/255"):
        Linf(8)
    assert Linf(1.0).eps == 1.0


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "."])
def test_names_beside_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    words = ["stochasticity", "--images", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="--beside must be NAME=DENOISER"):
        analyse.main([*words, "--beside", f"{name}=digits-addt"], standalone_mode=False)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["out"])


def test_threads_are_bounded() -> None:
    with pytest.raises(click.BadParameter, match="99999"):
        cli.main(["--threads", "99999", "evaluate", "--help"], standalone_mode=False)


def test_yaml_aliases_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(click.BadParameter, match="aliases have no place here"):
        evaluate.make_context("evaluate", ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.slow
def test_titles_and_paths_are_plain_text(tmp_path: Path) -> None:
    words = ["evaluate", *SMALL, "--denoiser", "none", "--title", "[/b]", "--out", "r[/b]x"]
    done = subprocess.run(
        [sys.executable, "-m", "depure", *words], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[/b]" in done.stdout
    assert "r[/b]x" in done.stdout
