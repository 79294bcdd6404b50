"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[b.split("class ")[-1][:12] for b in BLOCKS])
def test_extending(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/extending.md", "exec"), {"__name__": "docs"})


def test_there_are_blocks():
    assert len(BLOCKS) >= 4
