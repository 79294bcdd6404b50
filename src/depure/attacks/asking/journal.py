"""What a defence answered to an attack, kept on disk: a killed attack goes on where it was.

An attack is a function of its arguments and of the answers it gets. So nothing of its own state
is stored: run again with the same arguments, it asks the same questions, is given the recorded
answers, and arrives where it was, to the bit.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depure import __version__
from depure.noise import Noise

_LARGEST = 4 * 2**30  # bytes of a journal; an attack that needs more is remembered that far
_LENGTH, _DIGEST = 8, 32  # bytes that say how long a record is, and of its SHA-256


@contextmanager
def journal(path: Path, tally: dict[str, float] | None = None, run: str = "") -> Iterator[None]:
    """While the block runs, keep a defence's answers in a file, and give those that it holds.

    A record is given only for the question it answers, known by a hash of the run, images, labels,
    noise and the names of loss and model; from the first that differs or is damaged the file is
    written anew. Weights and settings are not hashed: `run` stands for them. The file is safe to
    delete at any time, and useless once the attack is over. If it cannot be written (a full disk),
    a warning says so and the attack goes on.

    Args:
        path: the file; made at the first answer.
        tally: counters that answering moves on, such as network calls. How far is recorded too,
            and added when a recorded answer is given. "seconds" is kept by the journal: the time
            that a recorded answer once took.
        run: what the answers are those of, see `depure.pieces.identity`: the records of another
            one are not taken.
    """
    book = _Journal(path, {} if tally is None else tally, run)
    token = _open.set(book)
    try:
        yield
    finally:
        _open.reset(token)
        book.close()


def cached(
    kind: str, noise: Noise, question: Sequence[Tensor], answer: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The answer to a question, from the open journal if it is there; else it is computed.

    Args:
        kind: with the noise and the tensors, identifies the question.
        noise: under which it is asked.
        question: tensors; the first names the device of the answer.
        answer: computes it.
    """
    book = _open.get()
    if book is None:
        return answer()
    token = _open.set(None)  # what a defence asks itself on the way is not the attack's question
    try:
        asked = f"{book.run} {kind} {noise!r} {question[0].device.type}"
        key = _key(asked, (*question, *noise.tensors))
        return book.answer(key, question[0].device, answer)
    finally:
        _open.reset(token)


class _Journal:
    """Records in the order of their questions: length and hash of a safetensors file, then it."""

    def __init__(self, path: Path, tally: dict[str, float], run: str) -> None:
        self.path, self.tally, self.run = path, tally, run
        self.old: BinaryIO | None = path.open("rb") if path.exists() else None
        self.new: BinaryIO | None = None
        self.end, self.full = 0, False  # bytes of good records; whether no more are written

    def answer(
        self, key: Tensor, device: torch.device, answer: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        if self.old is not None:
            found = self._next(key)
            if found is not None:
                return tuple(tensor.to(device) for tensor in found)
            self.old.close()
            self.old = None
        before, begin = dict(self.tally), time.perf_counter()
        given = answer()
        moved = {name: value - before[name] for name, value in self.tally.items()}
        if "seconds" in moved:
            moved["seconds"] = time.perf_counter() - begin
        self._write(key, given, list(moved.values()))
        return given

    def _next(self, key: Tensor) -> list[Tensor] | None:
        """The next record's answer, if it is whole and answers this question."""
        assert self.old is not None
        length = int.from_bytes(self.old.read(_LENGTH), "little")
        digest, blob = self.old.read(_DIGEST), self.old.read(min(length, _LARGEST))
        if hashlib.sha256(blob).digest() != digest:
            return None
        try:
            record = load(blob)
            moved, asked = record.pop("tally").tolist(), record.pop("key")
        except (SafetensorError, KeyError):  # whole, but none of ours
            return None
        if not torch.equal(asked, key) or len(moved) != len(self.tally):
            return None
        for name, by in zip(self.tally, moved, strict=True):
            self.tally[name] += type(self.tally[name])(by)
        self.end += _LENGTH + _DIGEST + length
        return [record[name] for name in sorted(record)]

    def _write(self, key: Tensor, given: tuple[Tensor, ...], moved: list[float]) -> None:
        if self.full:
            return
        tensors = {f"{i}": t.detach().cpu().contiguous().clone() for i, t in enumerate(given)}
        blob = save({**tensors, "key": key, "tally": torch.tensor(moved, dtype=torch.float64)})
        head = len(blob).to_bytes(_LENGTH, "little") + hashlib.sha256(blob).digest()
        if self.end + len(head) + len(blob) > _LARGEST:
            self.full = True
            return
        try:
            if self.new is None:
                self.path.touch()
                os.truncate(self.path, self.end)
                self.new = self.path.open("ab")
            self.new.write(head + blob)
            self.new.flush()  # to the system: it outlives this process
            self.end += len(head) + len(blob)
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
                with suppress(OSError):  # a full disk was warned of when it was written to
                    file.close()


_open: ContextVar[_Journal | None] = ContextVar("journal", default=None)


def _key(kind: str, question: Sequence[Tensor]) -> Tensor:
    """SHA-256 of a question."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {kind}".encode())
    for tensor in question:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
