"""The evaluation: shards of images, resumable, mergeable, judged on fresh draws."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from depure.attacks.base import Attack
from depure.attacks.expected import distinct_draws
from depure.data.images import Images
from depure.evaluation.card import card_of
from depure.evaluation.certificate import Certificate, check_labels, verify_gradient
from depure.evaluation.checks import Check, Trial, cheap_checks, costly_checks
from depure.evaluation.cost import Cost, peak_memory
from depure.evaluation.fitting import Fitting
from depure.evaluation.memory import plan_chunk
from depure.evaluation.neighbours import check_neighbours
from depure.evaluation.record import describe, differences
from depure.evaluation.shards import Shard, base_noise, compute_shard
from depure.evaluation.statistics import Estimate
from depure.files import read_json, replacing, write_json
from depure.noise import Noise
from depure.purify.defended import Defended
from depure.rows import Chunk, parts, rows_at_once
from depure.threat import Threat

Progress = Callable[[float, int], None]  # images done (in fractions), images in all


@dataclass(frozen=True, eq=False)
class Result:
    """A finished evaluation: the card, and the tables it was made from."""

    card: dict[str, Any]
    shard: Shard
    folder: Path | None

    @property
    def clean(self) -> Estimate:
        """Accuracy on a fresh draw without attack."""
        return Estimate(**self.card["results"]["clean"]["accuracy"])

    @property
    def robust(self) -> Estimate:
        """Accuracy on a fresh draw under attack."""
        return Estimate(**self.card["results"]["robust"]["accuracy"])


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
    batch: int = 1024
    check_images: int = 0
    title: str = ""
    command: str = ""
    device: torch.device | None = None
    remember: bool = True  # what the defence answers, to go on inside a shard
    memory_limit: int | None = None  # bytes, see `plan_chunk`

    def fitting(self) -> Fitting:
        """The rows that this run hands to the defence at once, decided when it began."""

        def plan() -> Chunk:
            first = self.images[slice(0, 1)]
            noise = base_noise(self.model, first.index, self.threat, self.seed).fold("chunk")
            rows = getattr(self.attack, "chunk", None)
            most = self.batch if rows is None else min(rows, self.batch)
            return plan_chunk(
                self.model, first.x.to(self._device()), noise, self.memory_limit, most
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
        return [self.folder / "shards" / f"{i:05d}.safetensors" for i in range(count)]

    def missing(self) -> list[int]:
        """Numbers of the shards still to compute."""
        return [i for i, path in enumerate(self.shard_paths()) if not path.exists()]

    def description(self) -> dict[str, Any]:
        """What decides the result, see `describe`."""
        described = describe(
            self.model, self.images, self.attack, self.threat, draws=self.draws, seed=self.seed
        )
        return {**described, "shard_size": self.shard_size}

    def prepare(self) -> Certificate:
        """Make or re-open the folder and certify the gradient.

        Raises:
            ValueError: if the folder holds a run of another configuration, a setting does not
                fit, the defence's gradient is broken, or its answers depend on the images beside.
        """
        if min(self.draws, self.shard_size, self.batch) < 1:
            raise ValueError(
                f"draws, shard_size and batch must be at least 1; got {self.draws}, "
                f"{self.shard_size} and {self.batch}"
            )
        first, device = self.images[slice(0, 1)], self._device()
        noise = base_noise(self.model, first.index, self.threat, self.seed)
        check_labels(self.model, first.x.to(device), self.images.y, noise)
        config, description = self.folder / "config.json", self.description()
        if config.exists():
            changed = differences(read_json(config), description)
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run of another configuration "
                    f"({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): choose "
                    f"another folder, or delete this one"
                )
        elif any((self.folder / "shards").glob("*.safetensors")):
            raise ValueError(
                f"{self.folder} holds shards but no config.json that says of what: choose another "
                f"folder, or delete this one"
            )
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        write_json(config, description)
        self.fitting().run(self._neighbours)
        certificate = self.fitting().run(self._certificate)
        own = certificate.rows[0] if certificate.rows else None
        if not certificate.passed and (own is None or own.exact):
            raise ValueError(f"this defence cannot be evaluated as it is. {certificate.verdict}")
        return certificate

    def _neighbours(self) -> None:
        some = self.images[slice(0, 4)]
        noise = base_noise(self.model, some.index, self.threat, self.seed).fold("neighbours")
        x = some.x.to(self._device())
        check_neighbours(self.model, x, noise, rows_at_once(x, self.batch))

    def _certificate(self) -> Certificate:
        path = self.folder / "certificate.json"
        if path.exists():
            return Certificate.of_record(read_json(path), path)
        some = self.images[slice(0, 2)]
        noise = base_noise(self.model, some.index, self.threat, self.seed).fold("certificate")
        device = self._device()
        certificate = verify_gradient(self.model, some.x.to(device), some.y.to(device), noise)
        write_json(path, certificate.record())
        return certificate

    def compute(self, part: tuple[int, int] = (0, 1), progress: Progress | None = None) -> None:
        """Compute the missing shards whose number is part[0] modulo part[1], skipping done ones."""
        this, parts = part
        if not 0 <= this < parts:
            raise ValueError(f"part must be (i, n) with 0 <= i < n; got {part}")
        paths, done = self.shard_paths(), set(range(len(self.shard_paths()))) - set(self.missing())
        mine = [i for i in range(len(paths)) if i % parts == this]
        total, before = sum(len(self._rows(i)) for i in mine), 0
        report = progress if progress is not None else lambda images, total: None
        fitting = self.fitting()
        for i in mine:
            rows, memory = self._rows(i), paths[i].with_suffix(".journal")
            if i not in done:
                shard, cost = fitting.run(partial(
                    compute_shard, self.model, rows, self.attack, self.threat, draws=self.draws,
                    seed=self.seed, batch=self.batch, device=self._device(),
                    tick=partial(_tick, report, before, len(rows), total),
                    memory=memory if self.remember else None,
                ))  # fmt: skip
                shard.save(paths[i], cost)
            memory.unlink(missing_ok=True)
            before += len(rows)
            report(before, total)

    def _rows(self, number: int) -> Images:
        return self.images[slice(number * self.shard_size, (number + 1) * self.shard_size)]

    def join(self, folders: Sequence[Path]) -> None:
        """Take over finished shards of runs of the same configuration computed elsewhere.

        Raises:
            ValueError: if a folder holds another configuration.
        """
        for folder in folders:
            changed = differences(read_json(folder / "config.json"), self.description())
            if changed:
                raise ValueError(
                    f"{folder} holds a run of another configuration ({'; '.join(changed[:3])})"
                )
            for path in self.shard_paths():
                source = folder / "shards" / path.name
                if source.exists() and not path.exists():
                    Shard.load(source)  # a damaged one is refused here
                    with replacing(path) as file:
                        shutil.copyfile(source, file)

    def finish(self) -> Result:
        """Join all shards, run the checks, write `card.json` and the example images.

        Raises:
            ValueError: if shards are missing or damaged.
        """
        missing = self.missing()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.shard_paths())} shards in {self.folder} are still "
                f"to be computed: run the same command again"
            )
        loaded = [Shard.load(path) for path in self.shard_paths()]
        shard = Shard.join([s for s, _ in loaded])
        cost = _total([c for _, c in loaded])
        draws = int(shard.clean.shape[1])
        trial = Trial(
            self.model, self.images, self.attack, self.threat, draws, self.seed, self.batch,
            self._device(), self.folder if self.remember else None,
        )  # fmt: skip
        fitting = self.fitting()
        certificate = fitting.run(self._certificate)
        checks = fitting.run(partial(self._checks, trial, shard, certificate))
        checks += fitting.checks()
        fitting.run(partial(self._examples, trial, shard))
        card = card_of(
            self.description(), shard, certificate, checks, cost,
            title=self.title or _title(self.model, self.threat), command=self.command,
            memory=peak_memory(self._device()), fitting=fitting, device=self._device(),
        )  # fmt: skip
        write_json(self.folder / "card.json", card)
        return Result(card, shard, self.folder)

    def _checks(self, trial: Trial, shard: Shard, certificate: Certificate) -> list[Check]:
        path = self.folder / f"checks-{self.check_images}.json"
        if not path.exists():
            checks = cheap_checks(trial, shard, certificate)
            if self.check_images:
                checks += costly_checks(trial, shard, self.check_images)
            write_json(path, {"checks": [asdict(c) for c in checks]})
        for memory in trial.journals():
            memory.unlink(missing_ok=True)
        return [Check(**c) for c in read_json(path)["checks"]]

    def _examples(self, trial: Trial, shard: Shard, count: int = 8) -> None:
        """Purified versions of the first images, under the judge's first draw, for the report."""
        some = trial.images[slice(0, count)]
        noise = base_noise(trial.model, some.index, trial.threat, trial.seed).fold("judge")
        draws = distinct_draws(trial.model.stages, noise, trial.draws)
        first = noise.draws(draws)[list(range(0, len(some) * draws, draws))] if draws > 1 else noise
        with torch.no_grad():
            pair = (some.x.to(trial.device), shard.x_adv[:count].to(trial.device))
            clean, adversarial = (_purified(trial.model, x, first) for x in pair)
        examples = {"clean": clean, "adversarial": adversarial}
        save_file(examples, self.folder / "examples.safetensors")


def _purified(model: Defended, x: Tensor, noise: Noise) -> Tensor:
    blocks = parts(len(x), rows_at_once(x))
    return torch.cat([model.purifier(x[p], noise[p]).cpu() for p in blocks]).contiguous()


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
    batch: int = 1024,
    memory_limit: int | None = None,
    check_images: int = 16,
    title: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Result:
    """Attack a defence and judge it on fresh draws: clean and robust accuracy with intervals.

    The gradient is certified first and a broken one refused. Every image is scored on `draws`
    draws that the attack never used, before the attack (the null control) and after it. Stopped
    at any moment and called again with the same `out`, it continues and ends with the same
    numbers; neither `batch` nor `shard_size` changes an outcome beyond float rounding.

    Args:
        model: the defence.
        images: labelled images; their data-set index keys the noise.
        attack: proposes adversarial images.
        threat: the ball, and the noise stages the attacker knows.
        draws: fresh draws per image; one is used where all noise is known.
        seed: of all randomness.
        out: run folder; a temporary one, deleted at the end, if omitted.
        shard_size: images per shard, attacked together; a stopped one goes on inside.
        batch: most rows of a forward pass; 1 judges a defence whose answers depend on the images
            beside (refused otherwise) one image at a time. How many there are follows from the
            work of a row and from `memory_limit`, is kept in `out` and changes only rounding.
        memory_limit: bytes that gradients may take; None: the purifier's own limit, or 1 GiB (half
            of the free memory on a GPU). Where memory runs out all the same, the run goes on with
            half of the rows, and says so.
        check_images: images for the checks that attack again (more steps, more draws,
            transfer); 0 leaves them out.
        title: what a report calls the run.
        command: the command that repeats the run, for the record.
        progress: called with images done (in fractions, while attacking) and images in all.

    Raises:
        ValueError: for a broken gradient, answers that depend on the images beside, a run folder of
            another configuration, a damaged shard or settings that do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="depure-") as temporary:
        run = Evaluation(
            model, images, attack, threat, Path(out) if out else Path(temporary), draws=draws,
            seed=seed, shard_size=shard_size, batch=batch, check_images=check_images,
            title=title, command=command, remember=out is not None, memory_limit=memory_limit,
        )  # fmt: skip
        run.prepare()
        run.compute(progress=progress)
        result = run.finish()
    return result if out else Result(result.card, result.shard, None)


def _tick(report: Progress, before: int, rows: int, total: int, fraction: float) -> None:
    report(before + rows * fraction, total)


def _total(costs: list[Cost]) -> Cost:
    return Cost(
        sum(c.denoiser_calls for c in costs),
        sum(c.classifier_calls for c in costs),
        sum(c.seconds for c in costs),
    )


def _title(model: Defended, threat: Threat) -> str:
    knows = f", {' and '.join(threat.knows)} noise known" if threat.knows else ""
    knows += f" up to a pool of {threat.pool}" if threat.pool > 1 else ""
    knows += f" but for a share of {threat.mix:g}" if threat.mix else ""
    size: Any = getattr(threat.ball, "eps", None)  # its repr may have more, such as a network
    ball = type(threat.ball).__name__ + (f"(eps={size})" if size is not None else "")
    return f"{type(model.purifier).__name__} under {ball}{knows}"
