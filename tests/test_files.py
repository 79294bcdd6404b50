"""Atomic writing: whole or as it was, named in errors, swept after kills."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from depure.files import (
    locked,
    plain,
    read_json,
    replacing,
    sweep,
    temporary_folder,
    write_json,
    write_text,
)


def test_replaces_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "one")
    write_text(tmp_path / "new" / "a.txt", "two")
    assert [(p.name, p.read_text()) for p in (tmp_path / "new").iterdir()] == [("a.txt", "two")]


def test_a_failing_writer_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), replacing(file) as temporary:
        fail(temporary)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*a\.txt .*: make room"):
        write_text(tmp_path / "a.txt", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "file"]


def test_the_mode_is_the_ordinary_one_whatever_wrote_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.chmod(0o600)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "plain")}
    assert modes == {0o640}


def test_sweep_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from depure.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as t:\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    (tmp_path / ".mine.tmp").write_text("somebody else's")
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "b.json") as temporary:
        assert sweep(tmp_path) == 1
        assert temporary.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.tmp", "b.json"]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff\xc3\xa9")
    assert plain(name) == "a\\xff\u00e9"
    write_text(tmp_path / name, f"of {name}")
    assert (tmp_path / name).read_text() == "of a\\udcff\u00e9"
    write_json(tmp_path / name, {"name": name})
    assert read_json(tmp_path / name) == {"name": name}


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff", "[" * 100_000])
def test_damaged_json_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(file)


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 2.5, "ü"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "ü"]}


HOLD = """
import sys, time
from pathlib import Path
from depure.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_refuses_the_second_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=r"another process is at work on .*run: wait"):
        locked(path).__enter__()
    assert sweep(path.parent) == 0  # it is held
    holder.kill()
    holder.wait()
    assert len(list(path.parent.iterdir())) == 1
    with locked(path), locked(path.with_name("other")):
        assert len(list(path.parent.iterdir())) == 2
    assert not list(path.parent.iterdir())


def test_one_who_waits_comes_next(tmp_path: Path) -> None:
    order, inside = [], threading.Event()

    def second() -> None:
        inside.wait(10)
        with locked(tmp_path / "a", wait=True):
            order.append("second")
            try:  # the first has removed its file: what is held must be one that others find
                locked(tmp_path / "a").__enter__()
            except BlockingIOError:
                order.append("refused")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "a"):
        inside.set()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second", "refused"]


def test_a_read_only_folder_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("depure.files.os.open", refuse)
    with locked(tmp_path / "a"):
        pass


def test_sweep_removes_free_locks_and_old_temporaries_of_any_host(tmp_path: Path) -> None:
    for name in (".a.depure-lock", ".poetry.lock", "b.lock"):
        (tmp_path / name).touch()
    for name, age in (("old", 48), ("new", 1)):
        file = tmp_path / f".{name}.elsewhere-1-00000000.tmp"
        file.touch()
        os.utime(file, (time.time() - 3600 * age,) * 2)
    assert sweep(tmp_path) == 2
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [".new.elsewhere-1-00000000.tmp", ".poetry.lock", "b.lock"]


def test_temporary_folders_go_and_those_of_killed_processes_go_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as mine:
        killed = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{_ended()}-"))
        for folder in (mine, killed, tmp_path / "depure-mine"):
            (folder / "shards").mkdir(parents=True)
            (folder / "shards" / "a").touch()
        elsewhere = tmp_path / "depure-elsewhere-1-aaaaaaaa"
        elsewhere.mkdir()
        with temporary_folder() as other:
            assert {*tmp_path.iterdir()} == {mine, other, tmp_path / "depure-mine", elsewhere}
    assert {*tmp_path.iterdir()} == {tmp_path / "depure-mine", elsewhere}


def _ended() -> int:
    """The number of a process that is no more."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child
