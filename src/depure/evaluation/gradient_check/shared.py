"""A gradient check that another run of the same defence has made already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depure.pieces import Pieces, read_config

CHECK = "gradient_check.json"
_MOST = 1000  # folders that are looked into


def made_before(folder: Path, key: str, *, beside: bool) -> dict[str, Any] | None:
    """The record of the check with this key, in a run folder or in one beside it, if there is one.

    A record of another run that is damaged, or not its own, is passed over.

    Args:
        folder: the run folder, whose own record is looked at first.
        key: what decides the check, see `key_of`.
        beside: whether the folders beside it are looked into; not those of a temporary folder,
            which anyone may have written.

    Raises:
        ValueError: the folder's own record is damaged, or another run's.
    """
    others = sorted(p.parent for p in folder.parent.glob(f"*/{CHECK}"))[:_MOST] if beside else []
    own = [folder] if (folder / CHECK).exists() else []
    for other in [*own, *(f for f in others if f.name != folder.name)]:
        try:
            record = Pieces(other, read_config(other / "config.json")[1]).read_json(CHECK)
        except (OSError, ValueError):
            if other is folder:
                raise
            continue
        if record.pop("key", None) == key:
            return record
    return None
