"""The evaluation: shards of images, resumable, mergeable, judged on fresh draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from depure.attacks.base import Attack
from depure.data.images import Images, check_outputs
from depure.defences.defended import Defended
from depure.evaluation.card import card_of, keep_card
from depure.evaluation.checks import Check, Trial, cheap_checks, costly_checks
from depure.evaluation.cost import peak_memory, total
from depure.evaluation.examples import write_examples
from depure.evaluation.fitting import Fitting
from depure.evaluation.gradient_check import (
    GradientCheck,
    check_labels,
    not_judged,
    verify_gradient,
)
from depure.evaluation.gradient_check.key import key_of
from depure.evaluation.gradient_check.shared import CHECK, made_before
from depure.evaluation.memory import plan_chunk
from depure.evaluation.neighbours import check_neighbours
from depure.evaluation.record import describe, differences, packages, refuse_other, title_of
from depure.evaluation.result import Result
from depure.evaluation.shards import Shard, base_noise, compute_shard, shard_name
from depure.files import locked, sweep, temporary_folder
from depure.pieces import Pieces, identity, read_config, write_config
from depure.records import whole_number
from depure.rows import Chunk, rows_at_once
from depure.threat import Threat

GradientCheckMode = Literal["full", "short", "none"]
Progress = Callable[[float, int], None]  # images done (in fractions), images in all


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation in a run folder; the steps of `evaluate`, for work spread over machines.

    `prepare`, then `compute` any parts (here, elsewhere, again after a kill), then `finish`.
    """

    model: Defended
    images: Images
    attack: Attack
    threat: Threat
    folder: Path
    draws: int = 20
    seed: int = 0
    shard_size: int = 32
    chunk: int = 1024
    check_images: int = 0
    title: str = ""
    command: str = ""
    device: torch.device | None = None
    journal: bool = True  # keep the attack's queries on disk, to go on inside a shard
    memory_limit: int | None = None  # bytes, see `plan_chunk`
    gradient_check: GradientCheckMode = "full"

    def __post_init__(self) -> None:
        if self.gradient_check not in (modes := get_args(GradientCheckMode)):
            raise ValueError(f"gradient_check must be one of {modes}; got {self.gradient_check!r}")
        for name in ("draws", "seed", "shard_size", "chunk", "check_images"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "there are no gradients in torch.inference_mode(): evaluate outside of it, or in "
                "torch.no_grad()"
            )

    def fitting(self) -> Fitting:
        """The rows that this run hands to the defence at once, decided when it began."""

        def plan() -> Chunk:
            first = self.images[slice(0, 1)]
            noise = base_noise(self.model, first.index, self.threat, self.seed).fold("chunk")
            return plan_chunk(
                self.model, first.x.to(self._device()), noise, self.memory_limit, self.chunk
            )

        return Fitting.of(self.folder / "chunk.json", plan)

    def _device(self) -> torch.device:
        if self.device is not None:
            return self.device
        first = next(self.model.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    def shard_paths(self) -> list[Path]:
        """Files of all shards, finished or not."""
        count = -(-len(self.images) // self.shard_size)
        return [self.folder / shard_name(i) for i in range(count)]

    def missing(self) -> list[int]:
        """Numbers of the shards still to compute."""
        return [i for i, path in enumerate(self.shard_paths()) if not path.exists()]

    def description(self) -> dict[str, Any]:
        """What decides the result, see `describe`."""
        described = describe(
            self.model, self.images, self.attack, self.threat, draws=self.draws, seed=self.seed
        )
        return {**described, "shard_size": self.shard_size}

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The description, and the versions that promise equal bits."""
        return {**self.description(), "versions": packages(self.model.modules())}

    @cached_property
    def _pieces(self) -> Pieces:
        """The files of this run, which `prepare` has begun."""
        return Pieces(self.folder, read_config(self.folder / "config.json")[1])

    def prepare(self, progress: Callable[[float], None] | None = None) -> GradientCheck:
        """Make or re-open the folder and check the gradient; `progress` hears its share done.

        Raises:
            ValueError: if the folder holds a run of another configuration, or one that other
                versions began and did not finish; a setting does not fit, the defence's
                gradient is wrong, or its answers depend on the images beside.
            OSError: if the folder cannot be written.
        """
        if min(self.draws, self.shard_size, self.chunk) < 1:
            raise ValueError(
                f"draws, shard_size and chunk must be at least 1; got {self.draws}, "
                f"{self.shard_size} and {self.chunk}"
            )
        first, device = self.images[slice(0, 1)], self._device()
        self.threat.ball.check_images(first.x)
        noise = base_noise(self.model, first.index, self.threat, self.seed)
        outputs = check_labels(self.model, first.x.to(device), self.images.y, noise)
        check_outputs(self.images, outputs)
        config = self.folder / "config.json"
        with locked(config, wait=True):  # parts may begin at the same time
            if config.exists():
                self._reopen(config)
            else:
                self._begin(config)
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self.fitting().run(self._neighbours)
        gradient_check = self.fitting().run(partial(self._gradient_check, progress))
        own = gradient_check.rows[0] if gradient_check.rows else None
        refused = not gradient_check.passed and (own is None or own.exact)
        if refused and gradient_check.judged and self.attack.needs_gradient:
            raise ValueError(f"this defence cannot be evaluated as it is. {gradient_check.verdict}")
        return gradient_check

    def _begin(self, config: Path) -> None:
        """Say what run this is; shards may lie there already if they are this very run's."""
        pieces = Pieces(self.folder, identity(self._config))
        done = set(range(len(self.shard_paths()))) - set(self.missing())
        try:
            for number in sorted(done):
                Shard.load(pieces, shard_name(number))
        except ValueError as error:
            raise ValueError(
                f"{self.folder} holds shards but no config.json that says of what, and they are "
                f"not all whole and of this run ({error}): choose another folder, or delete this "
                f"one"
            ) from error
        write_config(config, self._config)

    def _reopen(self, config: Path) -> None:
        """Refuse a folder of another configuration, and work left by other versions."""
        left = bool(self.missing()) or not self._checks_path().exists()
        refuse_other(self.folder, read_config(config)[0], self._config, work_left=left)

    def _checks_path(self) -> Path:
        return self.folder / f"checks-{self.check_images}.json"

    def _neighbours(self) -> None:
        some = self.images[slice(0, 4)]
        noise = base_noise(self.model, some.index, self.threat, self.seed).fold("neighbours")
        x = some.x.to(self._device())
        check_neighbours(self.model, x, noise, rows_at_once(x, self.chunk))

    def _gradient_check(self, progress: Callable[[float], None] | None = None) -> GradientCheck:
        some = self.images[slice(0, 2)]
        if self.gradient_check == "none":
            return not_judged("NOT CHECKED: --gradient-check none", len(some))
        short, draws = self.gradient_check == "short", getattr(self.attack, "eot", 1)
        most = min(self.shard_size, len(self.images)) * draws  # that an attack has to ask for
        chunk = min(rows_at_once(some.x, self.chunk), most)
        key = key_of(self.model, self.description(), some, chunk, short=short)
        known = made_before(self.folder, key, beside=self.journal)
        if known is not None:
            if not (self.folder / CHECK).exists():
                self._pieces.write_json(CHECK, {**known, "key": key})
            return GradientCheck.of_record(known, self.folder / CHECK)
        device = self._device()
        noise = base_noise(self.model, some.index, self.threat, self.seed).fold("gradient check")
        found = verify_gradient(
            self.model, some.x.to(device), some.y.to(device), noise, ball=self.threat.ball,
            chunk=chunk, short=short, progress=progress,
        )  # fmt: skip
        self._pieces.write_json(CHECK, {**found.record(), "key": key})
        return found

    def compute(self, part: tuple[int, int] = (0, 1), progress: Progress | None = None) -> None:
        """Compute the missing shards whose number is part[0] modulo part[1], skipping done ones.

        Raises:
            ValueError: if a shard that is there is damaged or another run's.
            BlockingIOError: if another process computes the same shard.
            OSError: if one cannot be written.
        """
        this, parts = part
        if not 0 <= this < parts:
            raise ValueError(f"part must be (i, n) with 0 <= i < n; got {part}")
        for folder in (self.folder, self.folder / "shards"):
            sweep(folder)
        paths = self.shard_paths()
        mine = [i for i in range(len(paths)) if i % parts == this]
        total, before = sum(len(self._rows(i)) for i in mine), 0
        report = progress if progress is not None else lambda images, total: None
        fitting = self.fitting()
        for i in mine:
            rows = self._rows(i)
            if paths[i].exists():
                Shard.load(self._pieces, shard_name(i))  # a wrong one is refused now
            else:
                with locked(paths[i]):
                    self._shard(fitting, i, partial(_tick, report, before, len(rows), total))
            before += len(rows)
            report(before, total)

    def _shard(self, fitting: Fitting, number: int, tick: Callable[[float], None]) -> None:
        path = self.folder / shard_name(number)
        memory = path.with_suffix(".journal")
        if not path.exists():  # another process may have made it just now
            shard, cost = fitting.run(partial(
                compute_shard, self.model, self._rows(number), self.attack, self.threat,
                draws=self.draws, seed=self.seed, chunk=self.chunk, device=self._device(),
                tick=tick, journal_path=memory if self.journal else None, run=self._pieces.run,
            ))  # fmt: skip
            shard.save(self._pieces, shard_name(number), cost)
        memory.unlink(missing_ok=True)

    def _rows(self, number: int) -> Images:
        return self.images[slice(number * self.shard_size, (number + 1) * self.shard_size)]

    def join(self, folders: Sequence[Path]) -> None:
        """Take over finished shards of runs of the same configuration computed elsewhere.

        Raises:
            FileNotFoundError: if a folder holds no run.
            ValueError: if a folder holds another configuration, or was computed with other
                versions, or a shard there is damaged or not what its name says.
        """
        mine = read_config(self.folder / "config.json")[0]
        for folder in folders:
            config = folder / "config.json"
            if not config.is_file():
                raise FileNotFoundError(f"{folder} holds no config.json: join the folder of a run")
            changed = differences(read_config(config)[0], mine)
            if changed:
                raise ValueError(
                    f"{folder} holds a run of another configuration ({'; '.join(changed[:3])}): "
                    f"join parts of the same run"
                )
            for number, path in enumerate(self.shard_paths()):
                name = shard_name(number)
                if (folder / name).exists() and not path.exists():
                    shard, cost = Shard.load(Pieces(folder, self._pieces.run), name)
                    shard.save(self._pieces, name, cost)

    def finish(self) -> Result:
        """Join all shards, run the checks, write `card.json` and the example images.

        What is there already is kept, so that a finished run may lie in a read-only folder.

        Raises:
            ValueError: if shards are missing or damaged.
            OSError: if a file cannot be written.
        """
        missing = self.missing()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.shard_paths())} shards in {self.folder} are still "
                f"to be computed: run the same command again"
            )
        with locked(self.folder / "card.json", wait=True):  # parts may end at the same time
            return self._finish()

    def _finish(self) -> Result:
        for folder in (self.folder, self.folder / "shards"):
            sweep(folder)
        names = [shard_name(i) for i in range(len(self.shard_paths()))]
        loaded = [Shard.load(self._pieces, name) for name in names]
        shard = Shard.join([s for s, _ in loaded])
        cost = total([c for _, c in loaded])
        draws = int(shard.clean.shape[1])
        trial = Trial(
            self.model, self.images, self.attack, self.threat, draws, self.seed, self.chunk,
            self._device(), self.folder if self.journal else None, self._pieces.run,
        )  # fmt: skip
        fitting = self.fitting()
        gradient_check = fitting.run(self._gradient_check)
        checks = fitting.run(partial(self._checks, trial, shard, gradient_check))
        checks += fitting.checks()
        fitting.run(partial(write_examples, self._pieces, trial, shard))
        card = card_of(
            self.description(), shard, gradient_check, checks, cost,
            title=self.title or title_of(self.model, self.threat), command=self.command,
            memory=peak_memory(self._device()), fitting=fitting, device=self._device(),
        )  # fmt: skip
        card = keep_card(self._pieces, card)
        for memory in (*trial.journals(), *(self.folder / "shards").glob("*.journal")):
            memory.unlink(missing_ok=True)  # of shards and checks that are there
        return Result(card, shard, self.folder)

    def _checks(self, trial: Trial, shard: Shard, gradient_check: GradientCheck) -> list[Check]:
        path = self._checks_path()
        if not path.exists():
            checks = cheap_checks(trial, shard, gradient_check)
            if self.check_images:
                checks += costly_checks(trial, shard, self.check_images)
            self._pieces.write_json(path.name, {"checks": [asdict(c) for c in checks]})
        return [Check(**c) for c in self._pieces.read_json(path.name)["checks"]]


def evaluate(
    model: Defended,
    images: Images,
    attack: Attack,
    threat: Threat,
    *,
    draws: int = 20,
    seed: int = 0,
    out: str | Path | None = None,
    shard_size: int = 32,
    chunk: int = 1024,
    memory_limit: int | None = None,
    check_images: int = 16,
    gradient_check: GradientCheckMode = "full",
    title: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Result:
    """Attack a defence and judge it on fresh draws: clean and robust accuracy with intervals.

    The gradient is checked first and a wrong one refused. Every image is scored on `draws`
    draws that the attack never used, before the attack (the null control) and after it. Stopped
    at any moment and called again with the same `out`, it continues and ends with the same
    numbers; neither `chunk` nor `shard_size` changes an outcome beyond float rounding.

    Args:
        model: the defence.
        images: labelled images; their data-set index keys the noise.
        attack: proposes adversarial images.
        threat: the ball, and the noise stages the attacker knows.
        draws: fresh draws per image; one is used where all noise is known.
        seed: of all randomness.
        out: run folder; if omitted a temporary one, deleted at the end (or, killed, by the next).
        shard_size: images per shard, attacked together; a stopped one goes on inside.
        chunk: most rows of a forward pass, see `plan_chunk`; 1 judges a defence whose answers
            depend on the images beside (refused otherwise) one image at a time.
        memory_limit: bytes that gradients may take, see `plan_chunk`; where memory runs out all the
            same, the run goes on with half of the rows, and says so.
        check_images: images for the checks that attack again (more steps, more draws,
            transfer); 0 leaves them out.
        gradient_check: at up to 12 points ("full"), at 3 ("short"), or none, with a warning.
        title: what a report calls the run.
        command: the command that repeats the run, for the record.
        progress: called with images done (in fractions, while attacking) and images in all.

    Raises:
        ValueError: for a wrong gradient, answers that depend on the images beside, a run folder of
            another configuration, a damaged shard or settings that do not fit.
    """
    with temporary_folder() as temporary:
        run = Evaluation(
            model, images, attack, threat, Path(out) if out else temporary, draws=draws,
            seed=seed, shard_size=shard_size, chunk=chunk, check_images=check_images,
            title=title, command=command, journal=out is not None, memory_limit=memory_limit,
            gradient_check=gradient_check,
        )  # fmt: skip
        run.prepare()
        run.compute(progress=progress)
        result = run.finish()
    return result if out else Result(result.card, result.shard, None)


def _tick(report: Progress, before: int, rows: int, total: int, fraction: float) -> None:
    report(before + rows * fraction, total)
