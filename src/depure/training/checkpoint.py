"""Checkpoints on disk: of one training, with a checksum, and the one before kept beside."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from depure.files import replacing
from depure.weights import (
    UNREADABLE,
    fingerprint,
    first_line,
    parse_safetensors,
    save_tensors,
)


def earlier(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write atomically; the checkpoint that was there becomes the one before.

    Args:
        path: a .safetensors file.
        tensors: contiguous, none sharing memory.
        facts: plain data, kept beside the tensors; "record" says what they belong to.

    Raises:
        OSError: it cannot be written (a full disk); what was there stays.
    """
    text = json.dumps(facts, allow_nan=False)
    with replacing(path) as file:
        save_tensors(tensors, file, {"facts": text, "checksum": _checksum(tensors, text)})
        if path.is_file():
            path.replace(earlier(path))


def read_checkpoint(
    path: Path, record: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of the last checkpoint, or of the one before if the last is damaged.

    Returns:
        None if there is no checkpoint.

    Raises:
        ValueError: all that are there are damaged, or one is of another record.
        OSError: one cannot be read.
    """
    damage: list[ValueError] = []
    for file in (path, earlier(path)):
        if not file.exists():
            continue
        try:
            tensors, facts = _read(file)
        except ValueError as error:
            damage.append(error)
            continue
        _check_record(file, facts["record"], record)
        if damage:
            text = f"{damage[0]}: the training goes on from {file}, at update {facts['update']}"
            warnings.warn(text, stacklevel=3)
        return tensors, facts
    if damage:
        raise ValueError(f"{damage[0]}: delete it and train again") from damage[0]
    return None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and the one before it: the trained model is safe elsewhere."""
    for file in (path, earlier(path)):
        file.unlink(missing_ok=True)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the checkpoint {file} ({error.strerror or error})") from error
    try:
        tensors, said = parse_safetensors(data)
        text, checksum = said["facts"], said["checksum"]
        if checksum != _checksum(tensors, text):
            raise ValueError("its checksum does not fit")
        facts: dict[str, Any] = json.loads(text)
        if not isinstance(facts, dict) or not isinstance(facts.get("record"), dict):
            raise ValueError("it does not say of what training it is")
    except (SafetensorError, KeyError, TypeError, *UNREADABLE) as error:
        raise ValueError(f"the checkpoint {file} is damaged ({first_line(error)})") from error
    return tensors, facts


def _check_record(file: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    names = [k for k in [*record, *(k for k in found if k not in record)]
             if found.get(k) != record.get(k)]  # fmt: skip
    if names:
        raise ValueError(
            f"the checkpoint {file} belongs to another configuration (another "
            f"{', '.join(names)}): choose another folder, or delete it"
        )


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)} {text}".encode()).hexdigest()
