"""What the folder of a training holds: the record of which training it is, and the card."""

from __future__ import annotations

import hashlib
import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depure.data import Images
from depure.evaluation.record import differences
from depure.files import read_json, sweep, write_json, write_text
from depure.training import Augment, Objective, Plan, remove_checkpoint
from depure.training.checkpoint import earlier

RECORD = "training.json"
_MODELS = ("classifier.safetensors", "unet/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Folder:
    """The folder of one training; `training` describes it, and what it checks, as plain data."""

    path: Path
    training: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The file of the running state."""
        return self.path / "checkpoint.safetensors"

    def finished(self) -> bool:
        """Whether this very training has ended here and its model is still what it wrote.

        Raises:
            ValueError: the folder holds another training, or a model that no record explains, or
                that is not the one that was written.
        """
        record = self.path / RECORD
        if not record.exists():
            self._refuse_unexplained()
            return False
        found = read_json(record)
        changed = differences(found.get("training"), self.training)
        if changed:
            raise ValueError(
                f"{self.path} holds a training of another configuration "
                f"({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): choose another "
                f"folder, or delete this one"
            )
        return self._holds(found.get("finished"))

    def _refuse_unexplained(self) -> None:
        if self.checkpoint.exists() or earlier(self.checkpoint).exists():
            return  # which says itself what it belongs to
        for name in _MODELS:
            for place in (self.path, self.path / "best"):
                if (place / name).is_file():
                    raise ValueError(
                        f"{self.path} holds a model, {place / name}, but no {RECORD} that says of "
                        f"which training: choose another folder, or delete this one"
                    )

    def _holds(self, files: Any) -> bool:
        if not isinstance(files, dict) or not files:
            return False
        for name, digest in files.items():
            file = self.path / name
            if not file.is_file():
                warnings.warn(f"{file} is missing: the training runs again", stacklevel=3)
                return False
            if _digest(file) != digest:
                raise ValueError(
                    f"{file} is not what this training wrote (damaged, or of another model): "
                    f"delete it, and the same command trains again"
                )
        return True

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written before any work is done.

        Raises:
            OSError: names it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write in {self.path} ({error.strerror or error}): choose another --out"
            ) from error

    def sweep(self) -> None:
        """Remove the temporary files of killed processes."""
        for name in ("", "samples", "unet", "scheduler", "best", "best/unet", "best/scheduler"):
            sweep(self.path / name)

    def claim(self) -> None:
        """Say of which training the folder is, before the first file of it is written."""
        write_json(self.path / RECORD, {"training": self.training})

    def card(
        self,
        objective: Objective,
        plan: Plan,
        augment: Sequence[Augment],
        images: Images,
        made_with: Sequence[tuple[int, str]],
    ) -> None:
        """Write MODEL_CARD.md; `made_with` as `train` gives it."""
        weights = "their running average over training" if plan.max_decay else "the last"
        made = "; ".join(f"from update {u} on {text}" if u > 1 else text for u, text in made_with)
        write_text(
            self.path / "MODEL_CARD.md",
            f"# A model trained by Depure\n\n- **Command**: `{command_line()}`\n"
            f"- **Data**: {images!r}\n- **Objective**: {objective.describe()}\n"
            f"- **Plan**: {plan!r}\n- **Augmentation**: {augment!r}\n- **Weights**: {weights}\n"
            f"- **Made with**: {made}\n",
        )

    def finish(self, files: Sequence[Path]) -> None:
        """Record what was written, then let go of the checkpoints."""
        digests = {file.relative_to(self.path).as_posix(): _digest(file) for file in files}
        write_json(self.path / RECORD, {"training": self.training, "finished": digests})
        remove_checkpoint(self.checkpoint)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def command_line() -> str:
    """The command as it was typed, without what only this machine has.

    A path below the working folder becomes relative to it, any other absolute path its last part.
    """
    return shlex.join(["depure", *map(_portable, sys.argv[1:])])


def _portable(word: str) -> str:
    """`--out=/a/m` becomes `--out=m`; `small-cnn:/data/c.safetensors`, `small-cnn:c...`."""
    start = 0 if word.startswith("/") else max(word.find("=/"), word.find(":/")) + 1
    path = Path(word[start:])
    if not path.is_absolute():
        return word
    here = Path.cwd()
    inside = path.is_relative_to(here) and path != here
    return word[:start] + (path.relative_to(here).as_posix() if inside else path.name or ".")
