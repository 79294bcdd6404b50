"""How well the house is kept, measured on the syntax tree.

    python tests/properties/house.py        # a table: what is counted, how many, how many may be

Every count has a bar. A breach that is moved (into an alias, a class pattern, `type() is`) is
still counted. `test_house.py` holds the counts to their bars.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "depure"


@dataclass(frozen=True)
class Source:
    """A file of the package."""

    path: Path  # inside the package
    text: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The folder or module right below the package."""
        return self.path.parts[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """Its dotted name."""
        return ".".join(["depure", *self.path.with_suffix("").parts]).removesuffix(".__init__")


def sources(package: Path = PACKAGE) -> list[Source]:
    """All files of the package."""
    return [Source(p.relative_to(package), p.read_text()) for p in sorted(package.rglob("*.py"))]


def classes_of(files: Iterable[Source], roots: set[str]) -> set[str]:
    """Names of all classes that descend from some, the roots not among them."""
    parents = {
        node.name: {_last(base) for base in node.bases}
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    while True:
        more = {name for name, bases in parents.items() if bases & (roots | found)} - found
        if not more:
            return found - roots
        found |= more


def asked_for(file: Source, names: set[str]) -> Iterator[int]:
    """Lines that ask whether something is of one of these classes.

    By `isinstance`, `issubclass`, a class pattern, or a comparison of `type(x)` or
    `x.__class__`; under an alias or a tuple of classes as well.
    """
    tree = file.tree
    names = names | _aliases(tree, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _last(node.func) in ("isinstance", "issubclass"):
            if len(node.args) == 2 and _mentions(node.args[1], names):
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and _last(node.cls) in names:
            yield node.cls.lineno
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            typed = any(_is_type_of(side) for side in sides)
            if typed and any(_mentions(side, names) or _names(side, names) for side in sides):
                yield node.lineno


_CLASSES = (ast.Name, ast.Attribute, ast.Tuple, ast.BinOp)  # what a class or several look like


def _aliases(tree: ast.Module, names: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname for a in node.names if a.asname and a.name in names}
            continue
        value = node.value if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(value, _CLASSES) and _mentions(value, names):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(_last(part) in names for part in ast.walk(node))


def _names(node: ast.AST, names: set[str]) -> bool:
    """A class named by a string, as in `type(x).__name__ == "DiffPure"`."""
    return any(isinstance(p, ast.Constant) and p.value in names for p in ast.walk(node))


def _is_type_of(node: ast.AST) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and _last(part.func) == "type" and len(part.args) == 1:
            return True
        if isinstance(part, ast.Attribute) and part.attr == "__class__":
            return True
    return False


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def purifiers_asked_for(files: list[Source]) -> int:
    """Questions for a concrete purifier outside the room of purifiers."""
    names = classes_of(files, {"Purifier", "Chained"})
    rooms = {"purifiers", "purify"}
    return sum(len(list(asked_for(f, names))) for f in files if f.room not in rooms)


def schedules_asked_for(files: list[Source]) -> int:
    """Questions for a concrete schedule, wherever."""
    names = classes_of(files, {"Schedule"})
    return sum(len(list(asked_for(f, names))) for f in files)


def getattrs(files: list[Source]) -> int:
    """Calls of `getattr` and `hasattr`, and settings read from `vars` or `__dict__` by name."""
    return sum(_getattr(node) for file in files for node in ast.walk(file.tree))


def _getattr(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if _last(node.func) in ("getattr", "hasattr", "attrgetter"):
            return True
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        return owner is not None and _last(node.func) == "get" and _is_dict_of(owner)
    return isinstance(node, ast.Subscript) and _is_dict_of(node.value)


def _is_dict_of(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "__dict__"
    return isinstance(node, ast.Call) and _last(node.func) == "vars" and len(node.args) == 1


def loose_dicts(files: list[Source]) -> int:
    """`dict[str, Any]`."""
    return sum(
        isinstance(node, ast.Subscript)
        and _last(node.value) in ("dict", "Mapping")
        and ast.unparse(node.slice) in ("(str, Any)", "str, Any", "(str, object)", "str, object")
        for file in files
        for node in ast.walk(file.tree)
    )


def unformatted(files: list[Source]) -> int:
    """`fmt: skip` and `fmt: off`."""
    return sum(file.text.count("# fmt: skip") + file.text.count("# fmt: off") for file in files)


def wide_functions(files: list[Source]) -> int:
    """Functions of more than 7 parameters."""
    return sum(
        _parameters(node) > 7
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = node.args
    named = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len([n for n in named if n not in ("self", "cls")]) + bool(a.vararg) + bool(a.kwarg)


def fullest_folder(files: list[Source]) -> int:
    """The most Python files in one folder, its `__init__` and `__main__` not counted."""
    plain = [f for f in files if f.path.name not in ("__init__.py", "__main__.py")]
    return max(Counter(f.path.parent for f in plain).values())


def exported(files: list[Source]) -> dict[str, set[str]]:
    """Names in `__all__`, and the modules from which their objects come."""
    found: dict[str, set[str]] = {}
    for file in files:
        names = _all_of(file.tree)
        origin = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(file.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for name in names:
            found.setdefault(name, set()).add(_final(origin.get(name, file.module), name, files))
    return found


def _final(origin: str, name: str, files: list[Source]) -> str:
    """Where a name is defined, followed through faces that hand it on."""
    for _ in range(9):
        module = origin.removesuffix(f".{name}")
        file = next((f for f in files if f.module == module), None)
        onward = None
        for node in ast.walk(file.tree) if file else ():
            if isinstance(node, ast.ImportFrom):
                named = [a for a in node.names if (a.asname or a.name) == name]
                onward = f"{node.module}.{named[0].name}" if named else onward
        if onward is None:
            return module
        origin = onward
    return origin


def _all_of(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(_last(t) == "__all__" for t in node.targets):
            parts = ast.walk(node.value)
            return [p.value for p in parts if isinstance(p, ast.Constant) and p.value]
    return []


def exported_twice(files: list[Source]) -> int:
    """Names that are exported with two meanings."""
    return sum(len(origins) > 1 for origins in exported(files).values())


def nowhere_exported(files: list[Source]) -> int:
    """Functions, classes and constants without an underscore that no face exports.

    A module with an underscore, `cli` (whose surface is the commands), and `__main__` are private.
    """
    names = set(exported(files))
    count = 0
    for file in files:
        if file.room in ("cli", "__main__") or any(
            p.startswith("_") and p != "__init__.py" for p in file.path.parts
        ):
            continue
        for node in file.tree.body:
            count += sum(not n.startswith("_") and n not in names for n in _defines(node))
    return count


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def cycles(files: list[Source]) -> int:
    """Modules in cycles of imports that happen when a module is first imported."""
    modules = {f.module for f in files}
    edges = {f.module: set(_imported(f, modules)) - {f.module} for f in files}
    reach = {m: _reachable(m, edges) for m in edges}
    return sum(m in reach[m] for m in edges)


def _at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from _at_import(
                [s for s in ast.iter_child_nodes(node) if isinstance(s, ast.stmt)]
            )


def _imported(file: Source, modules: set[str]) -> Iterator[str]:
    for node in _at_import(file.tree.body):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules or node.module in modules:
                    yield full if full in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in modules)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += edges.get(module, ())
    return seen


def cli_lines(files: list[Source]) -> int:
    """Lines of the command line."""
    return sum(len(f.text.splitlines()) for f in files if f.room == "cli")


@dataclass(frozen=True)
class Bar:
    """A count, and how high it may be."""

    what: str
    count: Callable[[list[Source]], int]
    most: int  # now; lowered with every step
    goal: int


BARS = (
    Bar("questions for a concrete purifier outside its room", purifiers_asked_for, 0, 0),
    Bar("questions for a concrete schedule", schedules_asked_for, 3, 3),
    Bar("getattr and hasattr", getattrs, 56, 10),
    Bar("dict[str, Any]", loose_dicts, 169, 25),
    Bar("fmt: skip and fmt: off", unformatted, 105, 15),
    Bar("functions of more than 7 parameters", wide_functions, 15, 6),
    Bar("files in the fullest folder", fullest_folder, 20, 9),
    Bar("names exported with two meanings", exported_twice, 0, 0),
    Bar("public names exported nowhere", nowhere_exported, 462, 40),
    Bar("modules in import cycles", cycles, 0, 0),
    Bar("lines of the command line", cli_lines, 3440, 1700),
)


def main() -> int:
    """Print the table; 1 if a count is above its bar."""
    files, over = sources(), 0
    for bar in BARS:
        count = bar.count(files)
        over += count > bar.most
        sys.stdout.write(f"{count:5d}  now at most {bar.most:4d}, goal {bar.goal:4d}  {bar.what}\n")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
