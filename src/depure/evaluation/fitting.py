"""The chunk of one run: planned once, kept in its folder, lowered where memory runs out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from depure.evaluation.checks import Check
from depure.files import locked, read_json, write_json
from depure.rows import Chunk, chunked

T = TypeVar("T")

_SHORT = (
    "out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed",
    "could not create a primitive", "could not execute a primitive", "could not create a memory",
)  # fmt: skip


@dataclass(eq=False)
class Fitting:
    """Runs work within a chunk; where memory runs out, again with half of the rows.

    Rounding depends on the rows that are run together. So a run keeps its chunk in a file of its
    folder, whatever the limit or the machine of a later call, and ends with the same bits.

    Args:
        path: the file.
        chunk: rows at once.
        planned: rows at the beginning, before memory ran out.
    """

    path: Path
    chunk: Chunk
    planned: int

    @staticmethod
    def of(path: Path, plan: Callable[[], Chunk]) -> Fitting:
        """From the file, or planned now and written; of several processes the first one decides.

        Raises:
            ValueError: the file is damaged.
        """
        if not path.exists():
            with locked(path, wait=True):
                if not path.exists():
                    chunk = plan()
                    write_json(path, _record(chunk, chunk.rows))
        data = read_json(path)
        try:
            return Fitting(path, Chunk(data["rows"], data["reserve"]), int(data["planned"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} does not say how many rows are run at once ({error!r}): delete it, and "
                f"run again"
            ) from error

    def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, with as many rows at once as memory allows.

        Raises:
            MemoryError: one row is too much.
        """
        while True:
            try:
                with chunked(self.chunk):
                    return work()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                problem = " ".join(str(error).split())[:200] or type(error).__name__
            # Out of the except block, and so without the frames that hold what filled the memory.
            self._lower(problem)

    def checks(self) -> list[Check]:
        """A warning, if memory ran out."""
        if self.chunk.rows == self.planned:
            return []
        text = (
            f"memory ran out with {self.planned} rows at once: the run went on with "
            f"{self.chunk.rows}, which changes nothing but rounding"
        )
        return [Check("memory", "warn", text)]

    def _lower(self, problem: str) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = self.chunk.rows // 2
        if rows < 1:
            raise MemoryError(
                f"memory ran out with one row at a time ({problem}): free memory, or take smaller "
                f"images or networks; what is finished is kept"
            )
        warnings.warn(
            f"memory ran out with {self.chunk.rows} rows at once: the run goes on with {rows}",
            stacklevel=4,
        )
        self.chunk = Chunk(rows, self.chunk.reserve)
        write_json(self.path, _record(self.chunk, self.planned))


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised it, on a CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SHORT)


def _record(chunk: Chunk, planned: int) -> dict[str, Any]:
    return {**asdict(chunk), "planned": planned}
