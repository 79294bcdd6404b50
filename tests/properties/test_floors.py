"""A file imports only from floors below its own; files and functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "depure"

# F0 to F6 of the design. Networks know values alone: a threat may be a distance of their features.
# Inside F3 the threat stands below those who attack or train under it, and inside F4 the evaluation
# below the analysis.
FLOORS = {
    "files": -1,
    "answers": 0,
    "noise": 0,
    "rows": 0,
    "records": 0,
    "types": 0,
    "weights": 0,
    "pieces": 0.5,
    "networks": 0.5,
    "diffusion": 1,
    "purifiers": 2,
    "defences": 2.5,
    "threat": 3,
    "attacks": 3.5,
    "training": 3.5,
    "evaluation": 4,
    "analysis": 4.5,
    "reporting": 5,
    "recipes": 5,
    "cli": 6,
    "__main__": 7,
}
APART = {"data", "zoo"}  # import F0, F1 and each other; imported by the command line alone
STRANGERS = {("attacks", "purifiers"), ("attacks", "defences")}
# Not loaders but plain values: the set of labelled images that training and evaluation are
# handed, and the version that records carry.
VALUES = {"depure.data.images", "depure.__version__"}

SOURCES = {p.relative_to(PACKAGE): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}


def module_of(path: Path) -> str:
    return ".".join(["depure", *path.with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path) for path in SOURCES}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything of ours that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = node.module != "depure"
            names = [str(node.module) if whole and n not in MODULES else n for n in full]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "depure":
                yield node.lineno, name


def fault(part: str, name: str) -> str | None:
    """Why a file of `part` may not import `name`, or None if it may."""
    other = name.split(".")[1] if "." in name else ""
    if other == part or name in VALUES:
        return None
    if other not in FLOORS and other not in APART:
        return "imports the package itself, which imports everything"
    if part in APART:
        return None if other in APART or FLOORS[other] <= 1 else "data and zoo know F0 and F1 only"
    if other in APART:
        return None if part == "cli" else "data and zoo are for the command line alone"
    if (part, other) in STRANGERS:
        return "attacks and purifiers do not know each other"
    return None if FLOORS[other] < FLOORS[part] else f"{other} is not below {part}"


def faults(path: Path, source: str) -> list[str]:
    part = path.parts[0].removesuffix(".py")
    if part == "__init__":
        return []
    if part not in FLOORS and part not in APART:
        return [f"{path}: {part} stands on no floor"]
    found = [(line, name, fault(part, name)) for line, name in imports(source)]
    return [f"{path}:{line}: {name}: {why}" for line, name, why in found if why]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_come_from_below(path: Path) -> None:
    assert not faults(path, SOURCES[path])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("noise.py", "from depure.types import Trace"),
        ("diffusion/grid.py", "from depure.purifiers import DiffPure"),
        ("purifiers/diffusion/diffpure.py", "from depure.attacks.gradient.pgd import PGD"),
        ("attacks/gradient/pgd.py", "def f():\n    from depure.purifiers.base import Purifier"),
        ("attacks/gradient/pgd.py", "import depure.training"),
        ("purifiers/chained.py", "from depure.defences import Defended"),
        ("attacks/gradient/pgd.py", "from depure.defences import Defended"),
        ("threat/balls.py", "from depure.attacks import Attack"),
        ("networks/features/distance.py", "from depure.threat import Ball"),
        ("networks/features/distance.py", "from depure.diffusion import Denoiser"),
        ("evaluation/run.py", "import depure.reporting.page"),
        ("evaluation/run.py", "from depure import PGD"),
        ("evaluation/run.py", "from depure.zoo import load_denoiser"),
        ("reporting/page.py", "from depure import cli"),
        ("zoo/load.py", "from depure.purifiers import DiffPure"),
        ("data/digits.py", "if TYPE_CHECKING:\n    from depure.threat import Ball"),
        ("new/thing.py", ""),
    ],
)
def test_faults_are_found(path: str, source: str) -> None:
    assert faults(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "diffusion/chain.py",
            "from depure.noise import Noise\nfrom depure.diffusion.grid import Grid",
        ),
        ("attacks/gradient/pgd.py", "import torch\nfrom depure.threat import Ball"),
        ("networks/features/distance.py", "from depure.rows import parts"),
        ("threat/unseen.py", "from depure.networks.features.distance import FeatureDistance"),
        ("cli/main.py", "from depure.zoo import load_denoiser\nfrom depure.reporting import page"),
        ("zoo/load.py", "from depure.data.images import Images\nfrom depure.diffusion import DDPM"),
    ],
)
def test_right_imports_pass(path: str, source: str) -> None:
    assert not faults(Path(path), source)


def test_no_import_cycles() -> None:
    """Among modules, by what they import when they are loaded (packages stand for themselves)."""
    graph: dict[str, set[str]] = {}
    for path, source in SOURCES.items():
        body = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        graph[module_of(path)] = {name for _, name in imports(ast.unparse(ast.Module(body, [])))}
    ended: set[str] = set()

    def visit(name: str, open_: tuple[str, ...]) -> None:
        assert name not in open_, " -> ".join((*open_, name))
        if name not in ended:
            for other in graph.get(name, ()):
                visit(other, (*open_, name))
            ended.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_size(path: Path) -> None:
    """No file over 400 lines, no function over 60."""
    assert len(SOURCES[path].splitlines()) <= 400
    for node in ast.walk(ast.parse(SOURCES[path])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path}:{node.lineno}: {node.name} has {lines} lines"
