"""CIFAR-10 and CIFAR-100 as people have them on disk, read without unpickling anything."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from depure.data.images import Images, stratified

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

_T = TypeVar("_T")


def cifar(
    folder: str | PathLike[str],
    split: Literal["train", "test"],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Images:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) as float32 `(N, 3, 32, 32)` in `[0, 1]`.

    Reads the binary version (`cifar-10-batches-bin`, `cifar-100-binary`) and the Python one,
    which torchvision keeps too (`cifar-10-batches-py`, `cifar-100-python`); where both lie
    side by side, the binary one. The Python files are pickles, but nothing is unpickled: their
    opcodes are only read, so a malicious file can run nothing.

    Args:
        folder: one of these four folders, or the folder that holds it.
        split: `"train"` or `"test"`.
        limit: only so many images, with the classes as balanced as possible.
        seed: fixes what `limit` picks.

    Returns:
        The images with the fine labels; `index` is the position in the whole split in the order
        of its files, whatever the limit. They are named such as `cifar10/train`.

    Raises:
        FileNotFoundError: there is no such folder, no CIFAR in it, or one of its files is missing.
        ValueError: a file is truncated or damaged, the folder holds both data sets, or an argument
            is out of range.

    Example:
        >>> cifar("data", "test", limit=512)  # doctest: +SKIP
        Images('cifar10/test': 512 images of 3x32x32, 10 classes)
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test"; got {split!r}')
    layout, place = _find(Path(folder))
    classes = layout.read_names(place)
    names = layout.train if split == "train" else layout.test
    parts = [layout.read(place / name) for name in names]
    y = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    pixels = np.concatenate([pixels for pixels, _ in parts])
    del parts  # bytes while they are picked, then one copy as float32
    index = torch.arange(len(y))
    if limit is not None:
        index = stratified(y, limit, seed)
        pixels = pixels[index.numpy()]
    x = torch.from_numpy(pixels).view(-1, *_SHAPE).float().div_(255)
    return Images(x, y[index], index, classes, f"cifar{layout.classes}/{split}")


def is_cifar(folder: str | PathLike[str]) -> bool:
    """Whether `cifar` would find a data set in the folder."""
    root = Path(folder)
    places = [(layout, root / below) for layout in _LAYOUTS for below in (".", layout.folder)]
    return any(layout.lies_in(place) for layout, place in places)


@dataclass(frozen=True)
class _Layout:
    """One way CIFAR lies on disk; `tops` counts the values of each label byte, fine ones last."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    tops: tuple[int, ...]

    @property
    def binary(self) -> bool:
        return self.names.endswith(".txt")

    @property
    def classes(self) -> int:
        return self.tops[-1]

    @property
    def archive(self) -> str:
        return f"cifar-{self.classes}-{'binary' if self.binary else 'python'}.tar.gz"

    def key(self, name: str) -> str:
        return f"fine_{name}" if len(self.tops) > 1 else name

    def lies_in(self, place: Path) -> bool:
        # Two files, for a stray one called "test" is no CIFAR-100.
        files = (*self.train, *self.test, self.names)
        return sum((place / name).is_file() for name in files) > 1

    def read(self, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels `(N, 3072)` and fine labels `(N,)` of one file."""
        return self._parse(file, _records if self.binary else _batch)

    def read_names(self, place: Path) -> tuple[str, ...]:
        """The class names, in label order."""
        return self._parse(place / self.names, _listed if self.binary else _named)

    def _parse(self, file: Path, parse: Callable[[bytes, _Layout], _T]) -> _T:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: unpack {self.archive} again")
        try:
            return parse(file.read_bytes(), self)
        except ValueError as error:
            reason = "no UTF-8 text" if isinstance(error, UnicodeError) else error
            raise ValueError(
                f"cannot read {file} ({reason}): download and unpack {self.archive} again"
            ) from error


_TEN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
_TEN_BIN = tuple(f"{name}.bin" for name in _TEN)
_LAYOUTS = (
    _Layout("cifar-10-batches-bin", _TEN_BIN, ("test_batch.bin",), "batches.meta.txt", (10,)),
    _Layout("cifar-10-batches-py", _TEN, ("test_batch",), "batches.meta", (10,)),
    _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", (20, 100)),
    _Layout("cifar-100-python", ("train",), ("test",), "meta", (20, 100)),
)


def _find(root: Path) -> tuple[_Layout, Path]:
    """The layout in `root` or just below it; of two layouts of one data set, the binary one."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {what}: pass the folder that CIFAR was unpacked in")
    found = [
        (layout, place)
        for layout in _LAYOUTS
        for place in (root, root / layout.folder)
        if layout.lies_in(place)
    ]
    if not found:
        looked_for = ", ".join(
            f"{layout.folder} ({layout.test[0]}, {layout.names} ...)" for layout in _LAYOUTS
        )
        raise FileNotFoundError(
            f"no CIFAR in {root}: looked there and one folder down for the files of {looked_for}; "
            f"download and unpack {_LAYOUTS[0].archive}, or pass another folder"
        )
    if len({layout.classes for layout, _ in found}) > 1:
        places = " or ".join(str(place) for _, place in found)
        raise ValueError(f"{root} holds both CIFAR-10 and CIFAR-100: pass {places}")
    return found[0]


def _records(content: bytes, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    tops = layout.tops
    size = len(tops) + _PIXELS
    if not content or len(content) % size:
        raise ValueError(f"{len(content)} bytes are not one or more records of {size}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    for column, top in enumerate(tops):
        _check_labels(0, int(records[:, column].max()), top)
    return records[:, len(tops) :], records[:, len(tops) - 1].astype(np.int64)


def _batch(content: bytes, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels, data = _entries(content, layout.key("labels"), "data")
    rows, raw = _array(data)
    if not isinstance(labels, list) or {type(label) for label in labels} != {int}:
        raise ValueError("its labels are no list of integers")
    _check_labels(min(labels), max(labels), layout.classes)
    if rows != len(labels) or len(raw) != rows * _PIXELS:
        raise ValueError(
            f"it has {len(labels)} labels, {rows} rows and {len(raw)} bytes of pixels, "
            f"which must be {_PIXELS} for each label"
        )
    pixels = np.frombuffer(raw, dtype=np.uint8).reshape(rows, _PIXELS)
    return pixels, np.array(labels, dtype=np.int64)


def _listed(content: bytes, layout: _Layout) -> tuple[str, ...]:
    lines = (line.strip() for line in content.decode().splitlines())
    return _check_names([line for line in lines if line], layout)


def _named(content: bytes, layout: _Layout) -> tuple[str, ...]:
    (names,) = _entries(content, layout.key("label_names"))
    if not isinstance(names, list):
        raise ValueError("its class names are no list")
    return _check_names([_text(name) for name in names], layout)


def _check_names(names: list[str], layout: _Layout) -> tuple[str, ...]:
    if len(names) != layout.classes:
        raise ValueError(f"it has {len(names)} class names instead of {layout.classes}")
    return tuple(names)


def _check_labels(low: int, high: int, top: int) -> None:
    if low < 0 or high >= top:
        raise ValueError(f"labels must lie in 0 .. {top - 1}; it has {low} .. {high}")


@dataclass(eq=False)
class _Call:
    """A call that a pickle asks for, noted down and never made."""

    name: str
    args: object = None
    state: object = None


def _entries(content: bytes, *keys: str) -> list[object]:
    top = _describe(content)
    if not isinstance(top, dict):
        raise ValueError("it holds no dictionary")
    # Files that went through `pickle.load(encoding="bytes")` have bytes for keys.
    named = {_text(key): value for key, value in top.items()}
    missing = [key for key in keys if key not in named]
    if missing:
        raise ValueError(f"it has no entry {missing[0]!r}")
    return [named[key] for key in keys]


def _array(value: object) -> tuple[int, bytes | bytearray]:
    """Rows and bytes of an inert numpy array: uint8, `(rows, 3072)`, row after row."""
    match value:
        case _Call("_reconstruct", _, (_, shape, _Call("dtype", ("u1", *_)), False, raw)):
            pass  # numpy's own state: version, shape, dtype, column-major or not, bytes
        case _Call("_frombuffer", (raw, _Call("dtype", ("u1", *_)), shape, "C")):
            pass  # the way of protocol 5
        case _:
            raise ValueError("its data is no row-major numpy array of uint8")
    match shape:
        case (int(rows), int(width)) if width == _PIXELS:
            pass
        case _:
            raise ValueError(f"its data has not the shape (N, {_PIXELS})")
    if isinstance(raw, str):  # Python 2's strings are bytes, which pickletools reads as latin-1
        return rows, raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray):
        raise ValueError("the pixels of its data are no bytes")
    return rows, raw


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError(f"it has {type(value).__name__} where a name belongs")
    return value


def _describe(content: bytes) -> object:
    """What a pickle describes: plain containers, and an inert `_Call` for every call."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):  # parses, executes nothing
            machine.step(opcode.name, argument)
        (top,) = machine.take(1)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its pickle is damaged: {error!r}") from error
    return top


# The only names that CIFAR's pickles may mention. They are compared, never looked up or called.
_KNOWN = {
    "numpy.core.multiarray _reconstruct": "_reconstruct",
    "numpy._core.multiarray _reconstruct": "_reconstruct",
    "numpy.core.numeric _frombuffer": "_frombuffer",
    "numpy._core.numeric _frombuffer": "_frombuffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}

_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT"}
    | {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)


class _Machine:
    """The pickle stack machine of protocols 2 to 5, cut down to what CIFAR's files need.

    Everything on its stack is plain data that it made itself, so an opcode on the wrong object
    raises, and does nothing else.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        match name:
            case _ if name in _VALUES:
                push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self.memo[argument])
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_TUPLE":
                push(())
            case "MARK":
                self.marks.append(len(self.stack))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                self.combine(name, argument)

    def combine(self, name: str, argument: Any) -> None:
        """The opcodes that take objects off the stack, and those that name or make a call."""
        stack = self.stack
        match name:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.take(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self.take_marked()))
            case "APPEND":
                items = self.take(1)
                stack[-1].extend(items)
            case "APPENDS":
                items = self.take_marked()
                stack[-1].extend(items)
            case "SETITEM":
                items = self.take(2)
                stack[-1].update(_pairs(items))
            case "SETITEMS":
                items = self.take_marked()
                stack[-1].update(_pairs(items))
            case "GLOBAL":
                stack.append(_noted(argument))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                stack.append(_noted(f"{module} {attribute}"))
            case "REDUCE":
                callee, args = self.take(2)
                stack.append(_called(callee.name, args))
            case "BUILD":
                (state,) = self.take(1)
                stack[-1].state = state
            case _:
                raise ValueError(f"it has the pickle opcode {name}, which CIFAR does not use")

    def take_marked(self) -> list[Any]:
        return self.take(len(self.stack) - self.marks.pop())

    def take(self, count: int) -> list[Any]:
        at = len(self.stack) - count
        if count < 0 or at < 0:
            raise IndexError("stack underflow")
        taken = self.stack[at:]
        del self.stack[at:]
        return taken


def _pairs(items: list[Any]) -> dict[str | bytes, Any]:
    if not all(isinstance(key, str | bytes) for key in items[::2]):
        raise ValueError("its dictionary has keys that are no strings")
    return dict(zip(items[::2], items[1::2], strict=True))


def _noted(full_name: str) -> _Call:
    if full_name not in _KNOWN:
        raise ValueError(
            f"it asks to call {full_name.replace(' ', '.')!r}, which CIFAR does not need; "
            "nothing was called"
        )
    return _Call(_KNOWN[full_name])


def _called(name: str, args: object) -> _Call | bytes:
    match name, args:
        case "encode", (str(text), "latin1"):  # how Python 3 writes bytes in protocol 2
            return text.encode("latin-1")
    return _Call(name, args)
