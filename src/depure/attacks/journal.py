"""What a defence answered to an attack, kept on disk: a killed attack goes on where it was.

An attack is a function of its arguments and of the answers it gets. So nothing of its own state
is stored: run again with the same arguments, it asks the same questions, is given the recorded
answers, and arrives where it was, to the bit.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depure import __version__

_LARGEST = 4 * 2**30  # bytes of a journal; an attack that needs more is remembered that far
_LENGTH = 8  # bytes that say how long a record is


@contextmanager
def journal(path: Path, tally: dict[str, float] | None = None) -> Iterator[None]:
    """While the block runs, keep a defence's answers in a file, and give those that it holds.

    A record is given only for the question it answers, known by the hash of the images, labels and
    noise; from the first that differs or is damaged the file is written anew. It may be read by
    nobody else meanwhile, and is safe to delete at any time; an attack's file is useless once the
    attack is over. If it cannot be written (a full disk), a warning says so and the attack goes on.

    Args:
        path: the file; made at the first answer.
        tally: counters that answering moves on, such as network calls and seconds. How far is
            recorded too, and added when a recorded answer is given.
    """
    book = _Journal(path, {} if tally is None else tally)
    token = _open.set(book)
    try:
        yield
    finally:
        _open.reset(token)
        book.close()


def recalled(
    kind: str, question: Sequence[Tensor], answer: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The answer to a question: from the journal that is open, if it is there, or computed.

    Args:
        kind: of the question, with all that decides the answer beside the tensors.
        question: tensors; the first names the device of the answer.
        answer: computes it.
    """
    book = _open.get()
    return answer() if book is None else book.answer(kind, question, answer)


class _Journal:
    """Records in the order of their questions: a length, then a safetensors file."""

    def __init__(self, path: Path, tally: dict[str, float]) -> None:
        self.path, self.tally = path, tally
        self.old: BinaryIO | None = path.open("rb") if path.exists() else None
        self.new: BinaryIO | None = None
        self.end, self.full = 0, False  # bytes of good records; whether no more are written

    def answer(
        self, kind: str, question: Sequence[Tensor], answer: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        key = _key(kind, question)
        if self.old is not None:
            found = self._next(key)
            if found is not None:
                return tuple(tensor.to(question[0].device) for tensor in found)
            self.old.close()
            self.old = None
        before = dict(self.tally)
        given = answer()
        moved = [value - before[name] for name, value in self.tally.items()]
        self._write(key, given, moved)
        return given

    def _next(self, key: Tensor) -> list[Tensor] | None:
        """The next record's answer, if it is whole and answers this question."""
        assert self.old is not None
        length = int.from_bytes(self.old.read(_LENGTH), "little")
        blob = self.old.read(min(length, _LARGEST))
        try:
            record = load(blob)
        except (SafetensorError, ValueError, KeyError):
            return None
        if len(blob) < length or not torch.equal(record.pop("key", torch.empty(0)), key):
            return None
        moved = record.pop("tally", torch.empty(0)).tolist()
        if len(moved) != len(self.tally):
            return None
        for name, by in zip(self.tally, moved, strict=True):
            self.tally[name] += type(self.tally[name])(by)
        self.end += _LENGTH + length
        return [record[name] for name in sorted(record)]

    def _write(self, key: Tensor, given: tuple[Tensor, ...], moved: list[float]) -> None:
        if self.full:
            return
        tensors = {f"{i}": t.detach().cpu().contiguous().clone() for i, t in enumerate(given)}
        blob = save({**tensors, "key": key, "tally": torch.tensor(moved, dtype=torch.float64)})
        if self.end + _LENGTH + len(blob) > _LARGEST:
            self.full = True
            return
        try:
            if self.new is None:
                self.path.touch()
                os.truncate(self.path, self.end)
                self.new = self.path.open("ab", buffering=0)
            self.new.write(len(blob).to_bytes(_LENGTH, "little") + blob)
            self.end += _LENGTH + len(blob)
        except OSError as error:
            self.full = True
            warnings.warn(
                f"the attack's journal {self.path} cannot be written ({error}): if the run is "
                f"stopped, these images start from their last record",
                stacklevel=2,
            )

    def close(self) -> None:
        for file in (self.old, self.new):
            if file is not None:
                file.close()


_open: ContextVar[_Journal | None] = ContextVar("journal", default=None)


def _key(kind: str, question: Sequence[Tensor]) -> Tensor:
    """SHA-256 of a question."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {kind}".encode())
    for tensor in question:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
