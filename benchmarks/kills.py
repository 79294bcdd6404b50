"""Kill the command line at any moment, run it again, and compare with a run left alone.

    python benchmarks/kills.py                                  # 100 kills, about 10 minutes
    python benchmarks/kills.py --seed 3 --only train --show     # other kills; every fault
    python benchmarks/kills.py --source ../other/src            # the same of another checkout

Half of the kills strike at a file operation (open to write, rename, remove, make a folder; the
weights are then half written), half after a random time; a third of the killed runs are killed
once more while they go on. Then the same command runs to its end. Beside the kills, disks that
fill at a file operation, and files or folders that lie where a training writes. Faults:

- differs: weights, predictions, images, cards or metrics are not those of the run left alone
  (seconds, dates and memory apart)
- left: a temporary file or a journal stays
- stuck: the same command does not finish
- training lost: neither checkpoint nor weights are left where a checkpoint had been
- check lost: a check, or the best model, is missing from a training or differs
- false success: exit status 0, and a result is missing
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz import import_all
from kills_watch import Operation, Watcher, cut_weights

EVALUATE = (
    "evaluate --images 4 --shard-size 2 --steps 1 --draws 2 --attack-steps 2 --eot 1 "
    "--check-images 1 --out run"
)
CLASSIFIER = "--images 32 --updates 6 --batch 8 --save-every 2 --check-every 3 --check-images 8"
DENOISER = "--images 16 --updates 2 --batch 8 --save-every 1"
ANALYSE = "--images 4 --steps 1 --attack-steps 1 --eot 1 --draws 2 --out run"
JOBS = {
    "evaluate": EVALUATE,
    "train classifier": f"train classifier {CLASSIFIER} --arch small-cnn-8 --out run",
    "train diffusion": f"train diffusion {DENOISER} --widths 32 --out run",
    "train addt": f"train addt {DENOISER} --iterations 1 --out run",
    "analyse": f"analyse stochasticity {ANALYSE}",
    "purify": "purify pictures run --steps 1 --batch 1",
}
BLOCKED = {  # what lies where a training writes
    "train classifier": ("run/classifier.safetensors/",),
    "train diffusion": ("run/unet", "run/scheduler"),
    "train addt": ("run/unet", "run/scheduler"),
}
FAULTS = ("differs", "left", "stuck", "training lost", "check lost", "false success")
PATIENCE = 600  # seconds that one run may take
VARYING = re.compile(
    r"(^|_)(seconds|dates?|time|memory|mib|bytes|versions?|command|host|started|per_s)($|_)"
)


@dataclass(frozen=True)
class Trial:
    """What happens to a run: killed or its disk full at an operation, or killed after seconds."""

    job: str
    kind: str  # "operation", "time", "full" or "blocked"
    at: float = 0
    again: float = 0  # killed once more after as many seconds
    block: str = ""


@dataclass(frozen=True)
class Whole:
    """A run left alone: its seconds, its file operations and what it wrote."""

    seconds: float
    operations: list[Operation]
    files: dict[str, str]


def start(job: str, place: Path, strike: str = "", at: int = 0) -> int:
    """Fork a child that runs the command in `place / "work"`; its process id."""
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        _child(job, place, strike, at)
    return process


def _child(job: str, place: Path, strike: str, at: int) -> None:
    """Run the command; never returns."""
    status = 1
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(place / "work")
    watcher = Watcher(place / "work", strike, at)
    try:
        sys.argv = ["depure", *JOBS[job].split()]
        cut_weights(watcher)
        sys.addaudithook(watcher)
        from depure.cli.main import main

        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        with contextlib.suppress(BaseException):
            (place / "operations").write_text(json.dumps(watcher.operations))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(process: int, seconds: float) -> int | None:
    """Its exit status; None if it was killed, by itself or after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= end
        if late:
            os.killpg(process, signal.SIGKILL)
        done, status = os.waitpid(process, 0 if late else os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)


def prepare(place: Path, pictures: Path) -> None:
    """An empty folder of work."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pictures, place / "work" / "pictures")


def plain(value: Any) -> Any:
    """Data without what differs between two equal runs: seconds, dates, memory."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not VARYING.search(str(k).lower())}
    return [plain(v) for v in value] if isinstance(value, list) else value


def content(file: Path) -> str:
    """What a file says, as text or a digest of its tensors or bytes."""
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return _tensors(data)
    if file.suffix == ".json":
        return json.dumps(plain(json.loads(data)), sort_keys=True)
    if file.suffix == ".jsonl":
        return json.dumps([plain(json.loads(line)) for line in data.splitlines()])
    if file.suffix == ".html":
        return "a whole page" if data.rstrip().endswith(b"</html>") else "a cut page"
    if file.suffix in (".md", ".csv"):
        text = re.sub(r"\d{4}-\d\d-\d\d([T ][\d:.+]*)?", "DATE", data.decode())
        text = re.sub(r"(?<![\w.])[\d.,]+ ?(s|ms|min|h|seconds|minutes|[KMG]i?B)\b", "AMOUNT", text)
        return re.sub(r".*(per second|[Mm]emory).*", "MEASURED", text)
    return hashlib.sha256(data).hexdigest()


def _tensors(data: bytes) -> str:
    """Names, types, shapes and bytes of all tensors, without the metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    digest = hashlib.sha256()
    for name in sorted(header):
        if VARYING.search(name):
            continue
        entry = header[name]
        first, last = entry["data_offsets"]
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        digest.update(data[8 + size + first : 8 + size + last])
    return digest.hexdigest()


def results(place: Path) -> dict[str, str]:
    """Everything below the work folder, by name."""
    found = {}
    for file in sorted((place / "work").rglob("*")):
        if file.is_file():
            name = str(file.relative_to(place / "work"))
            try:
                found[name] = content(file)
            except (ValueError, KeyError) as error:
                found[name] = f"damaged: {error}"
    return found


def compare(whole: Whole, found: dict[str, str], job: str) -> Iterator[tuple[str, str]]:
    """The faults of a finished run, each with a file."""
    for name in sorted(set(found) - set(whole.files)):
        yield "left", name
    for name, said in whole.files.items():
        if found.get(name) != said:
            check = job.startswith("train") and ("metrics" in name or "best" in name)
            yield "check lost" if check else "differs", name


def undisturbed(job: str, place: Path, pictures: Path) -> Whole:
    """Run twice; what differs between the two is measured, and not compared."""
    runs = []
    for _ in range(2):
        prepare(place, pictures)
        begin = time.monotonic()
        if wait(start(job, place), PATIENCE) != 0:
            raise RuntimeError(f"{JOBS[job]}:\n{(place / 'log').read_text()}")
        runs.append((time.monotonic() - begin, results(place)))
    (_, first), (seconds, second) = runs
    unequal = [name for name in first if first[name] != second.get(name)]
    if unequal:
        raise RuntimeError(f"two runs of {JOBS[job]} differ in {unequal}")
    operations = [tuple(entry) for entry in json.loads((place / "operations").read_text())]
    return Whole(seconds, operations, second)


def saved(whole: Whole, trial: Trial) -> bool:
    """Whether a checkpoint was in its place before the strike."""
    before = whole.operations[: max(int(trial.at) - 1, 0)]
    return any(e == "os.rename" and p.endswith("/checkpoint.safetensors") for e, p in before)


def training_lost(place: Path) -> bool:
    """Whether neither a checkpoint nor weights can be read."""
    files = [*(place / "work" / "run").rglob("*.safetensors")]
    good = [f for f in files if f.is_file() and not f.name.startswith(".")]
    good = [f for f in good if "best" not in f.parts and not _damaged(f)]
    return not good


def _damaged(file: Path) -> bool:
    try:
        return not content(file)
    except (ValueError, KeyError):
        return True


def attempt(trial: Trial, whole: Whole, place: Path) -> tuple[int, list[tuple[str, str]]]:
    """Strike, run again to the end, compare: how many kills there were, and the faults."""
    faults: list[tuple[str, str]] = []
    obstacle = place / "work" / trial.block
    if trial.block:
        obstacle.parent.mkdir(parents=True)
        obstacle.mkdir() if trial.block.endswith("/") else obstacle.write_text("x")
    striking = trial.kind in ("operation", "full")
    process = start(trial.job, place, trial.kind if striking else "", int(trial.at))
    status = wait(process, trial.at if trial.kind == "time" else PATIENCE)
    if status == 0 and list(compare(whole, results(place), trial.job)):
        faults.append(("false success", "exit status 0"))
    checkpointed = saved(whole, trial) if striking else trial.kind == "blocked"
    if trial.job.startswith("train") and checkpointed and training_lost(place):
        faults.append(("training lost", f"{trial.kind} at {_where(trial, whole)}"))
    if trial.block:
        shutil.rmtree(obstacle) if obstacle.is_dir() else obstacle.unlink(missing_ok=True)
    kills = int(status is None)
    if trial.again and kills:
        kills += wait(start(trial.job, place), trial.again) is None
    if wait(start(trial.job, place), PATIENCE) != 0:
        last = (place / "log").read_text().strip().splitlines()[-1:]
        return kills, [*faults, ("stuck", "".join(last)[:300])]
    return kills, [*faults, *compare(whole, results(place), trial.job)]


def _where(trial: Trial, whole: Whole) -> str:
    if trial.kind in ("operation", "full"):
        return " ".join(whole.operations[int(trial.at) - 1])
    return trial.block or f"{trial.at:.2f} s"


def kills_of(job: str, whole: Whole, rng: random.Random) -> Iterator[Trial]:
    """Kills without end: at every operation once, in random order, and at random times."""
    order = list(range(1, len(whole.operations) + 1))
    rng.shuffle(order)
    for at in itertools.cycle(order):
        again = rng.uniform(0, whole.seconds) if rng.random() < 1 / 3 else 0.0
        yield Trial(job, "operation", at, again)
        yield Trial(job, "time", rng.uniform(0, whole.seconds))


def failures_of(job: str, whole: Whole, rng: random.Random, count: int) -> Iterator[Trial]:
    """Disks that fill, one of them at the last weights, and places that are taken."""
    writes = [n for n, (event, _) in enumerate(whole.operations, 1) if event == "weights"]
    if job.startswith("train"):
        yield Trial(job, "full", writes[-1])
    for _ in range(count):
        yield Trial(job, "full", rng.randrange(1, len(whole.operations) + 1))
    for block in BLOCKED.get(job, ()):
        yield Trial(job, "blocked", block=block)


def run(options: argparse.Namespace, place: Path, pictures: Path) -> Iterator[tuple[str, ...]]:
    """A row of the table for each job."""
    jobs = [job for job in JOBS if job.startswith(options.only)]
    for number, job in enumerate(jobs):
        rng = random.Random(f"{options.seed} {job}")
        whole = undisturbed(job, place, pictures)
        wanted = options.kills // len(jobs) + (number < options.kills % len(jobs))
        counts: Counter[str] = Counter()
        endless = kills_of(job, whole, rng)
        failures = list(failures_of(job, whole, rng, options.full))
        end = time.monotonic() + options.seconds
        while (failures or counts["kills"] < wanted) and time.monotonic() < end:
            trial = failures.pop() if failures else next(endless)
            prepare(place, pictures)
            kills, faults = attempt(trial, whole, place)
            counts["kills"] += kills
            counts["failures"] += trial.kind in ("full", "blocked")
            counts.update({fault for fault, _ in faults})
            for fault, name in faults if options.show else ():
                print(f"{job}, {trial.kind} at {_where(trial, whole)}: {fault}: {name}", flush=True)
        yield (options.label, job, *(str(counts[n]) for n in ("kills", "failures", *FAULTS)))


def main() -> int:
    """Run the kills; exit status 1 if one found a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=3, help="full disks for each command")
    parser.add_argument("--seconds", type=float, default=600, help="at most, for each command")
    parser.add_argument("--only", default="", help="commands that begin so, such as train")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    parser.add_argument("--label", default="this tree", help="name of the rows of results")
    parser.add_argument("--show", action="store_true", help="print every fault")
    parser.add_argument("--out", type=Path, default=None, help="file to add the table to")
    options = parser.parse_args()
    import_all(options.source)
    names = ("tree", "command", "kills", "failures", *FAULTS)
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    clean = True
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        top = Path(temporary).resolve()
        process = os.fork()
        if process == 0:
            _pictures(top / "pictures")
            os._exit(0)
        os.waitpid(process, 0)
        for row in run(options, top / "place", top / "pictures"):
            clean &= not any(int(cell) for cell in row[4:])
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if options.out:
        with options.out.open("a") as file:
            file.write("\n".join(lines) + "\n")
    return int(not clean)


def _pictures(folder: Path) -> None:
    from depure.data import digits, write_image

    folder.mkdir()
    for i, image in enumerate(digits("test").x[:3]):
        write_image(image, folder / f"{i}.png")


if __name__ == "__main__":
    sys.exit(main())
