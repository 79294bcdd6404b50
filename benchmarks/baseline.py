"""The figures of a demo, to the bit, compared with those kept: a rebuilding must not move them.

    depure demo --out demo && python benchmarks/baseline.py demo            # compare
    python benchmarks/baseline.py demo --keep                               # keep them anew

It reads the shards of every run and hashes what was attacked and predicted; the figures of the
cards are written beside the hashes, for readers. Kept in `benchmarks/results/baseline.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from safetensors.numpy import load_file

KEPT = Path(__file__).parent / "results" / "baseline.json"
NAMES = ("x", "y", "x_adv", "clean", "adversarial", "loss", "accuracy", "finite", "best", "spent")


def figures(run: Path) -> dict[str, object]:
    """Hashes of a run's tensors, and the figures on its card."""
    digest = {name: hashlib.sha256() for name in NAMES}
    for shard in sorted((run / "shards").glob("*.safetensors")):
        tensors = load_file(shard)
        for name in NAMES:
            digest[name].update(tensors[name].tobytes())
    card = json.loads((run / "card.json").read_text())
    return {"results": card["results"], **{n: d.hexdigest()[:16] for n, d in digest.items()}}


def main() -> int:
    """Compare or keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="the folder that `depure demo --out` wrote")
    parser.add_argument("--keep", action="store_true", help="write the figures, not compare them")
    options = parser.parse_args()
    runs = sorted(p.parent for p in options.demo.glob("*/card.json"))
    found = {run.name: figures(run) for run in runs}
    if options.keep:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    kept = json.loads(KEPT.read_text())
    moved = [
        f"{name}: {key}"
        for name in sorted(kept.keys() | found.keys())
        for key in ("results", *NAMES)
        if kept.get(name, {}).get(key) != found.get(name, {}).get(key)
    ]
    print("\n".join(moved) if moved else f"{len(kept)} runs, every figure and tensor the same")
    return bool(moved)


if __name__ == "__main__":
    sys.exit(main())
