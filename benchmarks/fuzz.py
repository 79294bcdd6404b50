"""Odd and hostile calls of the command line and the library, each judged by what a user sees.

    python benchmarks/fuzz.py                           # 2,400 calls, about 5 minutes on 2 cores
    python benchmarks/fuzz.py --seed 3 --show           # other calls; every fault with its call
    python benchmarks/fuzz.py --only 17,401 --show      # some calls again
    python benchmarks/fuzz.py --source ../other/src     # the same calls of another checkout

Every call runs in a child of its own with 4 GiB of address space and 20 s of processor time, in
a folder of its own. The calls of a seed are the same every time. An outcome is one of:

- ok; clear: an error of one sentence that names the option, argument or file to blame
- unnamed: an error that names none of them
- traceback; raw: the text of a Python exception where a sentence should stand
- hang: over 20 s; crash: killed by a signal; memory: more than 4 GiB asked for
- lost: a file that was there before a failed call is gone or changed
- nonsense: accepted although no sense can be made of it (eps = nan), written outside of --out,
  or printed otherwise than it was typed
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_api
import fuzz_calls
import fuzz_files
from fuzz_calls import Case

RESULTS = Path(__file__).parent / "results"
SECONDS, PATIENCE, MEMORY = 20, 90, 4 * 2**30  # PATIENCE: on the wall, where a machine is shared
FAULTS = ("traceback", "raw", "hang", "crash", "memory", "lost", "nonsense", "unnamed")
RAW = re.compile(
    r"\b(?!Floating|Environ)[A-Z]\w+(Error|Exception)\b:?|run `depure --debug|"
    r"object has no attribute|"
    r"not supported between|invalid literal for|could not convert string|unsupported operand|"
    r"not subscriptable|not iterable|unexpected keyword|required positional|cannot convert float|"
    r"index out of range|math domain|codec can't|surrogates not allowed|embedded null|"
    r"closing tag|NoneType|Exceeds the limit|too large to convert|\[Errno|must be str|"
    r"recursion depth|INTERNAL ASSERT|0x[0-9a-f]{6}|<class|argument must be|out of range integral|"
    r"can't multiply|has no len|cannot be interpreted as an integer"
)
KINDS: tuple[tuple[int, Callable[[Any, random.Random], Case]], ...] = (
    (36, fuzz_calls.option_case), (4, fuzz_calls.beside_case), (8, fuzz_calls.main_case),
    (14, fuzz_calls.config_case), (27, fuzz_files.file_case), (4, fuzz_files.folder_case),
    (7, fuzz_api.api_case),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How one call ended."""

    verdict: str
    said: str  # the last thing it said


def make_case(number: int, seed: int, root: Any) -> Case:
    """The case of a number and a seed."""
    rng = random.Random(f"{seed}-{number}")
    make = rng.choices([m for _, m in KINDS], [w for w, _ in KINDS])[0]
    return make(root, rng)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _redirect(logs: Path) -> None:
    for number, name in ((0, os.devnull), (1, str(logs / "out")), (2, str(logs / "err"))):
        file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)


def _child(case: Case, work: Path, logs: Path) -> None:
    """Run the case; never returns."""
    status = 1
    try:
        _redirect(logs)
        os.chdir(work)
        os.environ.pop("DEPURE_DEBUG", None)
        os.environ["COLUMNS"] = "100"
        os.environ["TMPDIR"] = str(logs)
        tempfile.tempdir = None
        _limits()
        if case.code:
            status = _python(case)
        else:
            sys.argv = ["depure", *case.argv]
            importlib.import_module("depure.cli.main").main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _python(case: Case) -> int:
    """Evaluate the code; an error is printed with its class where the library did not raise it."""
    scope: dict[str, Any] = {}
    exec(fuzz_api.SETUP, scope)
    try:
        eval(case.code, scope)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = "depure" in frames[-1].filename and "raise" in (frames[-1].line or "raise")
        plain = isinstance(error, ValueError | TypeError | OSError) and ours
        sys.stderr.write(f"{'Error' if plain else type(error).__name__}: {error}\n")
        return 1
    return 0


def start(case: Case, fixtures: Path, place: Path) -> tuple[int, dict[str, bytes]]:
    """Lay out the folder and fork: the child's process id, and what the folder held."""
    work, logs = place / "in" / "work", place / "logs"
    shutil.rmtree(place, ignore_errors=True)
    work.mkdir(parents=True)
    logs.mkdir()
    for name in case.files if fixtures.is_dir() else ():
        source = fixtures / name
        if source.is_dir():
            shutil.copytree(source, work / name)
        elif source.exists():
            shutil.copy(source, work / name)
    if case.change is not None:
        case.change(work)
    before = snapshot(place / "in")
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        _child(case, work, logs)
    return process, before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below, by name, with a digest."""
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)  # noqa: PTH118
            with open(path, "rb") as file:  # noqa: PTH123
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).digest()
    return found


def judge(case: Case, status: int, late: bool, place: Path, before: dict[str, bytes]) -> Outcome:
    """What a user has seen."""
    out, err = ((place / "logs" / n).read_text(errors="replace") for n in ("out", "err"))
    lines = [line for line in (err or out).splitlines() if line.strip()]
    said = next((x for x in lines if x.startswith("Error")), lines[-1] if lines else "")[:400]
    after = snapshot(place / "in")
    if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return Outcome("hang", said)
    if os.WIFSIGNALED(status):
        return Outcome("crash", f"signal {os.WTERMSIG(status)}: {said}")
    if "Traceback (most recent" in err + out:
        return Outcome("traceback", lines[-1][:400])
    if os.WEXITSTATUS(status) == 0:
        return Outcome(*_accepted(case, out, set(after) - set(before), said))
    gone = [n for n, digest in before.items() if after.get(n) != digest and not _grown(n)]
    if gone:
        return Outcome("lost", f"{gone[0]!r}; {said}")
    if re.search(r"MemoryError|out of memory|can't allocate", err):
        return Outcome("memory", said)
    typed = re.sub("|".join(re.escape(a) for a in case.argv if len(a) > 3) or "$^", "", said)
    if RAW.search(typed):
        return Outcome("raw", said)
    named = any(name.lower() in err.lower() for name in case.names) or not case.names
    return Outcome("clear" if named or _gradient(out) else "unnamed", said)


def _grown(name: str) -> bool:
    """Files that a run may renew or remove as it goes on."""
    return name.endswith((".journal", ".tmp"))


def _gradient(out: str) -> bool:
    """A gradient check that fails is a result, not an error."""
    return "FAILED" in out


def _accepted(case: Case, out: str, new: set[str], said: str) -> tuple[str, str]:
    if case.absurd:
        return "nonsense", "accepted"
    inside = os.path.join("work", case.inside)  # noqa: PTH118
    outside = [name for name in new if not name.startswith(inside)]
    if case.inside and outside:
        return "nonsense", f"wrote {sorted(outside)[0]!r}"
    if case.shown and "".join(case.shown.split()) not in "".join(out.split()):
        return "nonsense", f"{case.shown!r} was printed otherwise"
    return "ok", said


@dataclass
class _Running:
    number: int
    case: Case
    place: Path
    began: float
    before: dict[str, bytes]


def run(
    cases: Iterator[tuple[int, Case]], fixtures: Path, workers: int
) -> Iterator[tuple[int, Case, Outcome]]:
    """Run the cases, some at a time; their outcomes as they end."""
    running: dict[int, _Running] = {}
    free = [fixtures.parent / f"worker-{i}" for i in range(workers)]
    pending: tuple[int, Case] | None = next(cases, None)
    while pending or running:
        while pending and free:
            place = free.pop()
            process, before = start(pending[1], fixtures, place)
            running[process] = _Running(*pending, place, time.monotonic(), before)
            pending = next(cases, None)
        for process, one in list(running.items()):
            late = time.monotonic() - one.began > PATIENCE
            if late:
                os.killpg(process, signal.SIGKILL)
            done, status = os.waitpid(process, 0 if late else os.WNOHANG)
            if done:
                del running[process]
                free.append(one.place)
                yield one.number, one.case, judge(one.case, status, late, one.place, one.before)
        time.sleep(0.002)


def build_fixtures(folder: Path) -> None:
    """Good files of every kind; the runs are made by the command itself, in children."""
    folder.mkdir()
    process = os.fork()
    if process == 0:
        fuzz_files.plain_fixtures(folder)
        os._exit(0)
    os.waitpid(process, 0)
    for name, line in fuzz_files.RUNS.items():
        place = folder.parent / "make"
        process, _ = start(Case("make", tuple(line.split()), files=("pictures",)), folder, place)
        made = place / "in" / "work" / name
        if name == "weights":  # killed between two checkpoints, as a user's would be
            _kill_after(process, made / "checkpoint.safetensors")
            (made / "metrics.jsonl").write_text('{"update": 1, "loss": 2.3}\n')
        elif os.waitpid(process, 0)[1]:
            raise RuntimeError((place / "logs" / "err").read_text())
        shutil.copytree(made, folder / name)


def _kill_after(process: int, file: Path) -> None:
    while not file.exists():
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def import_all(source: Path) -> Any:
    """Everything that a command imports, once; the root of the command line."""
    sys.path.insert(0, str(source.resolve()))
    main = importlib.import_module("depure.cli.main")
    found = Path(str(main.__file__)).resolve()
    if source.resolve() not in found.parents:
        raise SystemExit(f"depure was imported from {found}, not from {source}")
    for name in ("demo", "evaluate", "analyse", "verify", "purify", "report", "train"):
        importlib.import_module(f"depure.cli.{name}")
    for name in ("diffusers.UNet2DModel", "depure.reporting.figures", "sklearn.datasets"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name.removesuffix(".UNet2DModel"))
    vars(importlib.import_module("diffusers")).get("UNet2DModel")
    importlib.import_module("torch").set_num_threads(1)
    return main.cli


def report(counts: Counter[str], cases: int, label: str, seed: int) -> str:
    """A row of the table of results."""
    cells = [str(counts[name]) for name in ("ok", "clear", *FAULTS)]
    return f"| {label} | {seed} | {cases} | {' | '.join(cells)} |"


def main() -> int:
    """Run the fuzz; exit status 1 if it found a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=2400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="numbers of calls, separated by commas")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    parser.add_argument("--label", default="this tree", help="name of the row of results")
    parser.add_argument("--show", action="store_true", help="print every fault")
    options = parser.parse_args()
    root = import_all(options.source)
    numbers = [int(n) for n in options.only.split(",") if n] or range(options.calls)
    cases = ((n, make_case(n, options.seed, root)) for n in numbers)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        build_fixtures(Path(temporary) / "fixtures")
        for number, case, outcome in run(cases, Path(temporary) / "fixtures", options.workers):
            counts[outcome.verdict] += 1
            if options.show and (outcome.verdict in FAULTS or options.only):
                call = case.code or " ".join(ascii(a[:60])[1:-1] for a in case.argv)
                print(
                    f"{number} {outcome.verdict}: {case.kind}: {call}\n    {outcome.said!a}",
                    flush=True,
                )
    head = " | ".join(("tree", "seed", "calls", "ok", "clear", *FAULTS))
    print(f"| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    print(report(counts, len(numbers), options.label, options.seed))
    return int(any(counts[name] for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
