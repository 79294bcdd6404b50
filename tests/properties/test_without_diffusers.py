"""Depure reads, trains and writes in the layout of diffusers without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "depure"

RUN = """
import sys
sys.modules["diffusers"] = None  # importing it raises, as where it is not installed
from depure.cli.main import cli
train = "train diffusion --preset digits --images 16 --batch 8 --updates 2 --widths 8,8"
evaluate = "evaluate --denoiser train --images 2 --steps 2 --attack-steps 1 --draws 1"
for line in (train, evaluate + " --check-images 0 --gradient-check none"):
    cli([*line.split(), "--out", line.split()[0]], standalone_mode=False)
"""


def test_training_and_evaluating_run_where_diffusers_is_missing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "train" / "unet" / "config.json").is_file()
    assert (tmp_path / "evaluate" / "card.json").is_file()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_no_file_imports_diffusers(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] == "diffusers"]
