"""Files that are there whole or not at all, and errors that name the file."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9]+)-(?P<process>\d+)-[0-9a-f]{8}\.tmp$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end.

    Until then `path` is as it was, and so it stays if the block fails or the process is killed.
    Missing folders are made. The file has the ordinary mode, whatever wrote it. The temporary name
    carries host, process and a random part, so that no two writers meet; `sweep` removes those of
    killed processes.

    Raises:
        OSError: it cannot be written (a full disk, no permission); names the file and the cure.

    Example:
        >>> with replacing(Path("card.json")) as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    name = f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries make theirs private
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): make room or choose another place, "
            f"and run the same command again; what was written before is kept"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, see `replacing`."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data without NaN or infinity as JSON, see `replacing`."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of one file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not UTF-8, not valid JSON or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, or the run folder that it lies in, and run "
            f"again"
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(data).__name__}: delete it")
    return data


def sweep(folder: Path) -> int:
    """Remove the temporary files in `folder` that killed processes of this host left; how many."""
    removed = 0
    for file in folder.glob(".*.tmp") if folder.is_dir() else ():
        match = _TEMPORARY.match(file.name)
        if match and match["host"] == _HOST and not _alive(int(match["process"])):
            with suppress(OSError):
                file.unlink()
                removed += 1
    return removed


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's: it is there
        return True
    return True
