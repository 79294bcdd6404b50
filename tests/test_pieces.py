"""A piece is taken only for what it is: this file of this run, whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from depure.pieces import Pieces, identity, read_config, write_config

MINE, OTHER = identity({"seed": 0}), identity({"seed": 1})
TENSORS = {
    "a": torch.arange(6, dtype=torch.float64).view(2, 3),
    "b": torch.tensor([True, False]),
    "c": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.empty(0, 4),
}


@pytest.fixture
def pieces(tmp_path: Path) -> Pieces:
    return Pieces(tmp_path, MINE)


def test_what_was_written_comes_back(pieces: Pieces) -> None:
    pieces.write_tensors("shards/0.safetensors", TENSORS, {"cost": [1, 2.5]})
    tensors, facts = pieces.read_tensors("shards/0.safetensors")
    assert facts == {"cost": [1, 2.5]}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    pieces.write_json("a.json", {"b": [1, None, "ü"]})
    assert pieces.read_json("a.json") == {"b": [1, None, "ü"]}


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_another_run_another_name_and_no_seal(pieces: Pieces, name: str) -> None:
    def write(to: Pieces, name: str) -> None:
        if name.endswith("json"):
            to.write_json(name, {"x": 1})
        else:
            to.write_tensors(name, TENSORS)

    def read() -> object:
        return pieces.read_json(name) if name.endswith("json") else pieces.read_tensors(name)

    path = pieces.folder / name
    write(Pieces(pieces.folder, OTHER), name)
    with pytest.raises(ValueError, match=r"a\.\w+ is part of another run .*: delete this file"):
        read()
    write(pieces, f"b{name}")
    shutil.copy(pieces.folder / f"b{name}", path)
    with pytest.raises(ValueError, match=r"a\.\w+ is ba\.\w+ of this run under another name"):
        read()
    if name.endswith("json"):
        path.write_text('{"x": 1}')
    else:
        save_file(TENSORS, path)
    with pytest.raises(ValueError, match=r"a\.\w+ does not say which run it is part of"):
        read()


def test_every_flipped_bit_is_noticed(pieces: Pieces) -> None:
    """In the header too; a bit of padding alone may differ."""
    pieces.write_tensors("a.safetensors", TENSORS, {"cost": 1})
    path = pieces.folder / "a.safetensors"
    good, accepted = path.read_bytes(), 0
    generator = np.random.default_rng(0)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bad)
        try:
            tensors, facts = pieces.read_tensors("a.safetensors")
        except ValueError:
            continue
        accepted += 1
        assert facts == {"cost": 1}
        assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert accepted < 8
    for length in range(0, len(good), 17):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="is damaged"):
            pieces.read_tensors("a.safetensors")


def test_content_that_was_changed_by_hand(pieces: Pieces) -> None:
    pieces.write_json("a.json", {"x": 1})
    path = pieces.folder / "a.json"
    path.write_text(path.read_text().replace('"x": 1', '"x": 2'))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        pieces.read_json("a.json")
    pieces.write_tensors("a.safetensors", TENSORS, {"cost": 1})
    tensors = load_file(pieces.folder / "a.safetensors")
    with safe_open(pieces.folder / "a.safetensors", "pt") as file:
        said = file.metadata()
    same_bytes = {"a": tensors["a"].view(3, 2)}, {"b": tensors["b"].view(torch.uint8)}
    for wrong in same_bytes:
        save_file({**tensors, **wrong}, pieces.folder / "a.safetensors", said)
        with pytest.raises(ValueError, match="its checksum does not fit"):
            pieces.read_tensors("a.safetensors")


def test_a_seal_that_was_changed_by_hand(pieces: Pieces) -> None:
    """The name of the run, or of the piece, alone: its checksum was made with the others."""
    path = pieces.folder / "a.json"
    Pieces(pieces.folder, OTHER).write_json("a.json", {"x": 1})
    path.write_text(path.read_text().replace(OTHER, MINE))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        pieces.read_json("a.json")
    pieces.write_json("b.json", {"x": 1})
    path.write_text((pieces.folder / "b.json").read_text().replace("b.json", "a.json"))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        pieces.read_json("a.json")


def test_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path / os.fsdecode(b"\xff"), MINE)
    pieces.write_tensors("a.safetensors", TENSORS)
    assert pieces.read_tensors("a.safetensors")[0].keys() == TENSORS.keys()


def test_a_description_comes_back_with_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, {"seed": 0})
    assert read_config(path) == ({"seed": 0}, MINE)
    assert identity({"a": 1, "b": (2,)}) == identity({"b": [2], "a": 1}) != MINE
    path.write_text(path.read_text().replace(": 0", ": 1"))
    with pytest.raises(ValueError, match=r"config\.json is damaged .* what is finished is kept"):
        read_config(path)
    path.write_text('{"seed": 0}')
    with pytest.raises(ValueError, match="another version of Depure"):
        read_config(path)
