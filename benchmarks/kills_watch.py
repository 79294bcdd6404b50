"""File operations of a command, counted; it is killed, or its disk is full, at one of them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Operation = tuple[str, str]


class Watcher:
    """An audit hook that counts file operations in the folder and strikes at one of them."""

    def __init__(self, folder: Path, strike: str, at: int) -> None:
        self.folder, self.strike, self.at = str(folder), strike, at
        self.operations: list[Operation] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or isinstance(arguments[0], int):
            return
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
            return  # relative to a folder that is being removed, which is none of the results
        writes = event != "open" or (arguments[2] or 0) & WRITING
        path = arguments[1] if event == "os.rename" else arguments[0]
        if writes and self.inside(path):
            self.happens(event, os.fsdecode(path))

    def inside(self, path: Any) -> bool:
        """Whether a path lies in the folder."""
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)  # noqa: PTH100

    def happens(self, event: str, path: str) -> bool:
        """Count an operation; whether a write is to be cut, see `cut_weights`."""
        self.operations.append((event, os.path.relpath(path, self.folder)))
        now = len(self.operations) == self.at
        if self.strike == "operation" and now:
            if event == "weights":
                return True
            os.kill(os.getpid(), signal.SIGKILL)
        grows = event in ("open", "os.mkdir", "weights")
        if self.strike == "full" and len(self.operations) >= self.at and grows:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return False


def cut_weights(watcher: Watcher) -> None:
    """Writing safetensors, which is not Python's, becomes an operation that can be cut."""
    import safetensors.torch as module

    write: Any = module.__dict__["serialize_file"]

    def serialize(tensors: Any, filename: Any, metadata: Any = None) -> None:
        if not watcher.inside(filename):
            write(tensors, filename, metadata)
            return
        cut = watcher.happens("weights", os.fsdecode(filename))
        write(tensors, filename, metadata)
        if cut:
            os.truncate(filename, Path(filename).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    module.__dict__["serialize_file"] = serialize
