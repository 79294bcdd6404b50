"""Work in cells: each is computed once, kept on disk, and read back when a run continues."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depure.evaluation.record import differences
from depure.files import locked, replacing, sweep
from depure.pieces import Pieces, identity, read_config, write_config
from depure.weights import UNREADABLE

Array = NDArray[Any]
Arrays = dict[str, Array]

_SEAL = "__seal__"  # the entry of a cell that says what it is


@dataclass(eq=False)
class Cells:
    """Named pieces of one analysis; in memory alone, or in a folder that a rerun continues.

    Args:
        folder: where to keep them, or None.
        config: what decides the results, as plain data.
        total: how many cells there will be, for `progress`.
        progress: called with cells done and cells in all.

    Raises:
        ValueError: the folder holds another analysis, or a cell in it is damaged or not what its
            name says.
        OSError: the folder cannot be written.

    Example:
        >>> cells = Cells(None, {})
        >>> cells("mean", lambda: {"loss": np.zeros(3)})["loss"].shape
        (3,)
    """

    folder: Path | None
    config: dict[str, Any]
    total: int = 0
    progress: Callable[[float, int], None] | None = None
    _done: int = field(default=0, init=False)
    _pieces: Pieces | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        path, config = self.folder / "config.json", json.loads(json.dumps(self.config))
        with locked(path, wait=True):
            if path.exists():
                apart = differences(read_config(path)[0], config)
                if apart:
                    raise ValueError(
                        f"{self.folder} holds another analysis ({'; '.join(apart[:3])}): choose "
                        f"another folder, or delete it"
                    )
            else:
                write_config(path, config)
        self._pieces = Pieces(self.folder, identity(config))
        for folder in (self.folder, self.folder / "cells"):
            sweep(folder)

    def __call__(self, name: str, compute: Callable[[], Mapping[str, Array]]) -> Arrays:
        """The arrays of one cell: from disk, or computed now and kept."""
        found = (
            {k: np.asarray(v) for k, v in compute().items()}
            if self._pieces is None
            else _kept(self._pieces, f"cells/{name}.npz", compute)
        )
        self._done += 1
        if self.progress:
            self.progress(self._done, max(self.total, self._done))
        return found


def _kept(pieces: Pieces, name: str, compute: Callable[[], Mapping[str, Array]]) -> Arrays:
    """A cell from its file, or computed and written; by one process at a time."""
    path = pieces.folder / name
    if not path.exists():
        with locked(path, wait=True):
            if not path.exists():
                found = {k: np.asarray(v) for k, v in compute().items()}
                seal = np.asarray(json.dumps(pieces.seal(name, found)))
                write_arrays(path, {**found, _SEAL: seal})
                return found
    found = read_arrays(path)
    text = str(found.pop(_SEAL, np.asarray("null")))
    try:
        said = json.loads(text)
    except ValueError as error:
        pieces.damaged(name, error)
    pieces.check(name, said, found)
    return found


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """One .npz file, written atomically.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **dict(arrays))  # type: ignore[arg-type]
    with replacing(path) as file:
        file.write_bytes(content.getvalue())


def read_arrays(path: Path) -> Arrays:
    """The arrays of a .npz file; nothing is unpickled.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is damaged or no archive of arrays: delete this file and run again; the rest "
            f"is kept"
        ) from error
