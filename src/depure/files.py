"""Files that are there whole or not at all, locks, and errors that name the file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9]+)-(?P<process>\d+)-[0-9a-f]{8}\.tmp$")
_FOLDER = re.compile(r"^depure-(?P<host>[A-Za-z0-9]+)-(?P<process>\d+)-\w{8}$")
_DAY = 24 * 3600.0  # seconds; nothing of ours is written for so long
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder in the system's place for temporary files, removed at the end of the block.

    Its name carries host and process, so that those of processes that were killed are removed
    when the next one is made.

    Raises:
        OSError: it cannot be made.
    """
    for folder in Path(tempfile.gettempdir()).glob("depure-*"):
        match = _FOLDER.match(folder.name)
        if match and match["host"] == _HOST and not _alive(int(match["process"])):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"depure-{_HOST}-{os.getpid()}-") as made:
        yield Path(made)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """While the block runs, no other block for the same `path` runs, here or in another process.

    The lock is an empty file beside `path`, which itself need not exist. The system releases it
    when the process ends, however it ends; the file is removed at the end, or by `sweep`. Where the
    folder is read-only nothing is locked, for nothing can be written there.

    Args:
        path: what the block writes.
        wait: for the other to end, instead of refusing.

    Raises:
        BlockingIOError: another one runs; names `path`.
        OSError: the lock cannot be made; names it.
    """
    file = path.with_name(f".{path.name}.depure-lock")
    try:
        handle = _acquire(file, wait)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"another process is at work on {path}: wait for it to end, then run the same command "
            f"again, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise OSError(
                f"cannot write {file} ({error.strerror or error}): choose another folder"
            ) from error
        handle = None
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)  # while it is held: see _acquire
            os.close(handle)


def _acquire(file: Path, wait: bool) -> int:
    """A handle on the locked file."""
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Another may have removed the file between the two lines above: then what is locked
            # here is a file that nobody will find.
            if os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"the file system of {file.parent} has no locks ({error.strerror}): see to it "
                    f"that no two processes do the same work there",
                    stacklevel=4,
                )
                return handle
            os.close(handle)
            raise
        os.close(handle)


def plain(name: str) -> str:
    """A file's name as text that can be shown anywhere: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, see `replacing`; what a file name holds beyond UTF-8 as backslashes."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


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
        return parse_json(path.read_bytes())
    except (ValueError, IsADirectoryError) as error:
        reason = "it is a folder" if isinstance(error, OSError) else error
        raise ValueError(
            f"{path} is damaged ({reason}): delete it, or the run folder that it lies in, and run "
            f"again"
        ) from error


def _kind(value: object) -> str:
    """What JSON calls a value that is no object."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return "an array"
    return "a text" if isinstance(value, str) else "a number"


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object of some bytes; NaN and infinity, which JSON does not know, are refused.

    Raises:
        ValueError: says what is wrong, in a few words.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_int,
            parse_float=_float,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("its entries are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds {_kind(found)}; expected a JSON object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"it holds {text[:40]}, which is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > 30:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def sweep(folder: Path) -> int:
    """Remove what killed processes left in `folder`; how many files.

    These are temporary files whose process, on this host, is gone, or that are a day old; and
    lock files that nobody holds.
    """
    removed = 0
    for file in folder.glob(".*") if folder.is_dir() else ():
        with suppress(OSError):
            if file.name.endswith(".depure-lock"):
                handle = _acquire(file, wait=False)
                file.unlink()
                os.close(handle)
                removed += 1
            elif _left(file):
                file.unlink()
                removed += 1
    return removed


def _left(file: Path) -> bool:
    """Whether it is a temporary file of ours that nobody writes any more."""
    match = _TEMPORARY.match(file.name)
    if not match:
        return False
    dead = match["host"] == _HOST and not _alive(int(match["process"]))
    return dead or time.time() - file.stat().st_mtime > _DAY


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's: it is there
        return True
    return True
