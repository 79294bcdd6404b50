"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest

from depure import Defended, Identity, Linf, Threat, digits, evaluate, load_classifier

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[b.split("class ")[-1][:12] for b in BLOCKS])
def test_extending(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/extending.md", "exec"), {"__name__": "docs"})


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


def test_the_attack_that_is_shown_attacks():
    names = {"__name__": "docs"}
    (block,) = [b for b in BLOCKS if "OneStep" in b]
    exec(compile(block, "docs/extending.md", "exec"), names)
    images, model = digits("test").sample(16), Defended(Identity(), load_classifier("digits"))
    evaluated = evaluate(
        model, images, names["OneStep"](), Threat(Linf(0.2)), draws=1, check_images=0
    )
    assert evaluated.robust.value < evaluated.clean.value - 0.2
    assert evaluated.shard.loss.shape == (16, 1)  # the trace has the one iteration


@pytest.mark.slow
def test_readme(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs/first/report.html").is_file()
    assert "robust" in capsys.readouterr().out


def test_readme_is_one_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 95
    assert len(re.findall(r"\d[\d.,]*", text)) <= 40
