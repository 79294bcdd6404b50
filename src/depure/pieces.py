"""The files of one run: each says which run it is part of, which file it is, and that it is whole.

A file's name can be changed and its content damaged or copied from elsewhere. So every piece
carries a *seal*: the identity of its run, its name in the run folder, and a SHA-256 over these and
its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from depure.files import read_json, write_json
from depure.weights import parse_safetensors, write_safetensors

_CURE = "delete this file and run again; the others are kept"
_ENTRY = "depure"  # of the metadata of a safetensors file
_KEYS = {"run", "piece", "sha256"}


def identity(description: Mapping[str, Any]) -> str:
    """What a run is known by: SHA-256 (first 32 hex digits) of what decides its results."""
    return hashlib.sha256(_plain(description)).hexdigest()[:32]


def write_config(path: Path, description: Mapping[str, Any]) -> None:
    """Write what decides the results of a run, with its `identity`."""
    write_json(path, {**description, "identity": identity(description)})


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """What `write_config` wrote: the description, and the identity of the run.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: it is damaged, or of another version of Depure.
    """
    found = read_json(path)
    said = found.pop("identity", None)
    if said is None:
        raise ValueError(
            f"{path} has no identity: another version of Depure wrote it, or something else: "
            f"choose another folder, or delete this one"
        )
    if said != identity(found):
        raise ValueError(
            f"{path} is damaged (its identity does not fit): delete this file and run again; what "
            f"is finished is kept"
        )
    return found, str(said)


@dataclass(frozen=True)
class Pieces:
    """The files of one run in a folder, written and read with their seals.

    Args:
        folder: of the run.
        run: its `identity`.

    Example:
        >>> pieces = Pieces(Path("runs/a"), identity({"seed": 0}))
        >>> pieces.write_json("checks.json", {"checks": []})  # doctest: +SKIP
        >>> pieces.read_json("checks.json")  # doctest: +SKIP
        {'checks': []}
    """

    folder: Path
    run: str

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write plain data without NaN or infinity to the file `name` of the run.

        Raises:
            OSError: it cannot be written.
        """
        write_json(self.folder / name, {**data, "seal": self.seal(name, data)})

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: it is damaged, or another run's, or another piece of this run.
        """
        data = read_json(self.folder / name)
        seal = data.pop("seal", None)
        self.check(name, seal, data)
        return data

    def write_tensors(
        self, name: str, tensors: dict[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write tensors and plain data to the safetensors file `name` of the run.

        Raises:
            OSError: it cannot be written.
        """
        said = dict(facts or {})
        seal = self.seal(name, {**tensors, "facts": said})
        text = json.dumps({"facts": said, "seal": seal})
        write_safetensors(tensors, self.folder / name, {_ENTRY: text})  # one: several are unordered

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `write_tensors` wrote: the tensors and the plain data.

        Raises:
            ValueError: it is not there, damaged, another run's, or another piece of this run.
        """
        try:
            tensors, head = parse_safetensors((self.folder / name).read_bytes())
            said = dict(json.loads(head.get(_ENTRY, "{}")))
            facts, seal = said.get("facts"), said.get("seal")
        except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError,
                RecursionError) as error:  # fmt: skip
            self.damaged(name, error)
        self.check(name, seal, {**tensors, "facts": facts})
        return tensors, dict(facts or {})

    def seal(self, name: str, content: Mapping[str, Any]) -> dict[str, str]:
        """What the file `name` with this content says of itself.

        Args:
            name: relative to the run folder, with "/".
            content: tensors, arrays and plain data by name.
        """
        return {"run": self.run, "piece": name, "sha256": _digest(self.run, name, content)}

    def check(self, name: str, seal: Any, content: Mapping[str, Any]) -> None:
        """Raise ValueError unless a seal is that of the file `name` with this content."""
        if not (isinstance(seal, dict) and set(seal) == _KEYS):
            raise ValueError(
                f"{self.folder / name} does not say which run it is part of: another version of "
                f"Depure wrote it, or something else: {_CURE}"
            )
        if seal["sha256"] != _digest(seal["run"], seal["piece"], content):
            self.damaged(name, "its checksum does not fit")
        if seal["run"] != self.run:
            raise ValueError(
                f"{self.folder / name} is part of another run ({_short(seal['run'])}, this one is "
                f"{_short(self.run)}): {_CURE}"
            )
        if seal["piece"] != name:
            raise ValueError(
                f"{self.folder / name} is {seal['piece']} of this run under another name: {_CURE}"
            )

    def damaged(self, name: str, why: object) -> NoReturn:
        """Raise the ValueError of a damaged file."""
        if isinstance(why, OSError):
            why = why.strerror or why
        elif isinstance(why, BaseException) and type(why) not in (ValueError, SafetensorError):
            why = "its header says nothing of the run"
        raise ValueError(f"{self.folder / name} is damaged ({why}): {_CURE}")


def _short(run: object) -> str:
    return str(run)[:8]


def _plain(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, allow_nan=False).encode()


def _digest(run: object, piece: object, content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(_plain([run, piece]))
    for name in sorted(content):
        value = content[name]
        if isinstance(value, Tensor):
            kind, flat = str(value.dtype), value.detach().cpu().contiguous().flatten()
            data = flat.view(torch.uint8).numpy().tobytes()
        elif isinstance(value, np.ndarray):
            kind, data = value.dtype.str, value.tobytes()
        else:
            kind, data = "plain", _plain(value)
        shape = tuple(getattr(value, "shape", ()))
        digest.update(_plain([name, kind, shape, len(data)]) + data)
    return digest.hexdigest()
