"""The README's picture, from a demo: clean and attacked accuracy of every run, with intervals.

depure demo --out demo && python benchmarks/demo_picture.py demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from depure.reporting import figures
from depure.reporting.load import load_run

ROWS = (
    "undefended", "ddpm-bpda", "ddpm-white-box", "ddpm-dw-forward", "ddpm-dw-reverse",
    "ddpm-dw-both", "ddim-bpda", "ddim-white-box", "ddim-dw-both",
)  # fmt: skip

if __name__ == "__main__":
    runs = [load_run(Path(sys.argv[1]) / name) for name in ROWS]
    lines = [figures.Line(run.title, run.clean, run.robust, run.known) for run in runs]
    folder = Path(__file__).parents[1] / "docs" / "images"
    svg, _ = figures.save(figures.forest_figure(lines), folder, "demo")
    svg.unlink()  # the README shows the bitmap
