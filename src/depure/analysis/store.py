"""Work in cells: each is computed once, kept on disk, and read back when a run continues."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from depure.evaluation.record import differences
from depure.files import read_json, replacing, write_json

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(eq=False)
class Cells:
    """Named pieces of one analysis; in memory alone, or in a folder that a rerun continues.

    Args:
        folder: where to keep them, or None.
        config: what decides the results, as plain data.
        total: how many cells there will be, for `progress`.
        progress: called with cells done and cells in all.

    Raises:
        ValueError: the folder holds another analysis.

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

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        path, config = self.folder / "config.json", json.loads(json.dumps(self.config))
        if path.exists():
            apart = differences(read_json(path), config)
            if apart:
                raise ValueError(
                    f"{self.folder} holds another analysis ({'; '.join(apart[:3])}): choose "
                    f"another folder, or delete it"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, config)

    def __call__(self, name: str, compute: Callable[[], Mapping[str, Array]]) -> Arrays:
        """The arrays of one cell: from disk, or computed now and kept."""
        path = self.folder / "cells" / f"{name}.npz" if self.folder else None
        if path is not None and path.exists():
            found = read_arrays(path)
        else:
            found = {k: np.asarray(v) for k, v in compute().items()}
            if path is not None:
                write_arrays(path, found)
        self._done += 1
        if self.progress:
            self.progress(self._done, max(self.total, self._done))
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
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete this file and run again; the rest is kept"
        ) from error
