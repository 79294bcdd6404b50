"""What lies in the folder of a fuzzed call: good files, and the ways in which they are damaged."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from fuzz_calls import BASES, FIXTURES, Case

QUICK = BASES["evaluate"][0].replace("--images 2", "--images 4") + " --shard-size 2"
STUDY = BASES["analyse stochasticity"][0]
TRAINING = "train classifier --images 16 --batch 8 --arch small-cnn-8 --save-every 2 --updates 3"
RUNS = {
    "run": f"evaluate {QUICK} --out run",
    "half": f"evaluate {QUICK} --out half --part 1/2",
    "other": f"evaluate {QUICK} --seed 7 --out other",
    "study": f"analyse stochasticity {STUDY} --out study",
    "weights": f"{TRAINING} --out weights",
}


def plain_fixtures(folder: Path) -> None:
    """Images, networks and saved adversarial images; the runs of `RUNS` come from the command."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    import depure.zoo
    from depure.data import digits, write_image

    test = digits("test")
    for i, image in enumerate(test.x[:4]):
        write_image(image, folder / "pictures" / str(i % 2) / f"{i}.png")
    bundled = Path(str(depure.zoo.__file__)).parent / "weights" / "digits"
    shutil.copytree(bundled / "denoiser", folder / "model")
    shutil.copy(bundled / "classifier.safetensors", folder / "small.safetensors")
    (folder / "junk.txt").write_bytes(b"junk \xff\x00 junk\n")
    (folder / "empty").write_bytes(b"")
    some = test.sample(4)
    save_file({"x_adv": some.x}, folder / "adv.safetensors")
    np.savez(folder / "adv.npz", x_adv=some.x.numpy(), index=some.index.numpy())
    np.save(folder / "adv.npy", some.x.numpy())
    torch.save({"adv_complete": some.x}, folder / "adv.pt")
    cifar = folder / "cifar"
    cifar.mkdir()
    record = bytes([3]) + bytes(range(256)) * 12
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        (cifar / name).write_bytes(record * 4)
    (cifar / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")


Mutation = Callable[[Path, random.Random], None]


def _truncate(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * rng.random())])


def _flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    reach = len(data) if rng.random() < 0.3 else min(len(data), 400)  # the header, mostly
    for _ in range(rng.choice((1, 1, 3, 30))):
        if data:
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _zero(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    start = rng.randrange(max(1, len(data)))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    file.write_bytes(data)


def _empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def _noise(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(rng.choice((1, 7, 8, 9, 64, 1000))))


def _append(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.choice((b"\0", b"}", b"\n{", b"x" * 100)))


def _folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _gone(file: Path, rng: random.Random) -> None:
    file.unlink()


def _swap(file: Path, rng: random.Random) -> None:
    others = [p for p in sorted(file.parents[1].rglob("*")) if p.is_file() and p != file]
    if others:
        shutil.copy(rng.choice(others), file)


def _long_header(file: Path, rng: random.Random) -> None:
    size = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])


BYTES: tuple[Mutation, ...] = (
    _truncate, _truncate, _flip, _flip, _flip, _zero, _empty, _noise, _append, _folder, _gone,
    _swap,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 10**12, 10**30, float("nan"), float("inf"), "x", "", "²", [], {},
    [None], [[]], {"a": 1}, "../x", [10**12], "y" * 5000, [0, 0], ["x", "x"], 1e308, -(10**30),
)  # fmt: skip
ODD_JSON = (
    b"null", b"[]", b"3", b'"x"', b"{}", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe",
    b'{"a": ' + b"9" * 6000 + b"}", b"NaN", b'{"schema": "depure.card/1"}',
)  # fmt: skip


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = (
        list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else []
    )
    found = [p for key in keys for p in ((*at, key), *_places(data[key], (*at, key)))]
    return found


def _changed(data: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice((1, 1, 2))):
        places = _places(data)
        if not places:
            return data
        shallow = [p for p in places if len(p) <= 2]
        *way, last = rng.choice(shallow if rng.random() < 0.6 else places)
        inner = data
        for key in way:
            inner = inner[key]
        if rng.random() < 0.25:
            del inner[last]
        else:
            inner[last] = rng.choice(ODD_VALUES)
    return data


def _json(file: Path, rng: random.Random) -> None:
    """One value of the file changed; or the whole replaced."""
    if rng.random() < 0.15:
        file.write_bytes(rng.choice(ODD_JSON))
        return
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    file.write_text("\n".join(json.dumps(_changed(json.loads(x), rng)) for x in lines) + "\n")


def _header(file: Path, rng: random.Random) -> None:
    """The header of a safetensors file, changed as JSON."""
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(_changed(json.loads(raw[8 : 8 + size]), rng)).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + size :])


def mutation(file: Path, rng: random.Random) -> Mutation:
    """One that suits the kind of file."""
    special: tuple[Mutation, ...] = ()
    if file.suffix in (".json", ".jsonl"):
        special = (_json,) * 24
    elif file.suffix == ".safetensors":
        special = (_header, _header, _header, _header, _header, _long_header)
    return rng.choice(BYTES + special)


_UNET = "model/unet/config.json"
_SCHEDULER = "model/scheduler/scheduler_config.json"
# The file, the call that reads it, and names of which an error must give one.
READERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    *(
        (f"run/{name}", "report run", ("run",))
        for name in (
            "card.json",
            "card.json",
            "card.json",
            "card.json",
            "shards/00000.safetensors",
            "examples.safetensors",
        )
    ),
    ("run/card.json", "report run other", ("run",)),
    *(
        (f"run/{name}", f"evaluate {QUICK} --out run", ("run",))
        for name in (
            "config.json",
            "certificate.json",
            "checks-0.json",
            "shards/00001.safetensors",
            "card.json",
        )
    ),
    *(
        (f"half/{name}", f"evaluate {QUICK} --out half", ("half",))
        for name in ("config.json", "certificate.json", "shards/00000.safetensors")
    ),
    ("other/config.json", f"evaluate {QUICK} --out half --join other", ("other",)),
    *(
        (_UNET, line, ("model", "denoiser"))
        for line in (
            "purify pictures cleaned --steps 1 --denoiser model",
            f"evaluate {QUICK} --denoiser model --out o",
            "train addt --images 16 --updates 1 --batch 8 --iterations 1 --denoiser model --out o",
        )
    ),
    (_UNET, "purify pictures cleaned --steps 1 --denoiser model", ("model", "denoiser")),
    (_UNET, "purify pictures cleaned --steps 1 --denoiser model", ("model", "denoiser")),
    *(
        (
            _SCHEDULER,
            "purify pictures cleaned --steps 1 --denoiser model",
            ("model", "denoiser", "t_star"),
        ),
    )
    * 3,
    (
        "model/unet/diffusion_pytorch_model.safetensors",
        "purify pictures cleaned --steps 1 --denoiser model",
        ("model",),
    ),
    (
        "small.safetensors",
        f"evaluate {QUICK} --classifier small-cnn:small.safetensors --out o",
        ("small.safetensors", "classifier"),
    ),
    *(
        (f"adv.{kind}", f"evaluate {QUICK} --adversarial adv.{kind} --out o", (f"adv.{kind}",))
        for kind in ("safetensors", "npz", "npy", "pt")
    ),
    ("pictures/1/1.png", "purify pictures cleaned --steps 1", ("1.png",)),
    (
        "pictures/1/1.png",
        f"evaluate {QUICK} --data pictures --out o",
        ("1.png", "pictures", "images"),
    ),
    (
        "cifar/test_batch.bin",
        "evaluate --data cifar --denoiser none --images 2 --out o",
        ("cifar", "test_batch", "images", "classifier"),
    ),
    (
        "cifar/batches.meta.txt",
        "train classifier --data cifar --images 8 --updates 1 --batch 4 --arch small-cnn-8 --out o",
        ("cifar", "classes"),
    ),
    *(("weights/checkpoint.safetensors", f"{TRAINING} --out weights", ("weights",)),) * 3,
    *(("weights/metrics.jsonl", f"{TRAINING} --out weights", ("weights",)),) * 2,
    *(
        (f"study/{name}", f"analyse stochasticity {STUDY} --out study", ("study",))
        for name in ("config.json", "arrays.npz", "settings.json", "CELL", "CELL")
    ),
)


def file_case(root: click.Group, rng: random.Random) -> Case:
    """A call that reads a damaged file."""
    place, line, names = rng.choice(READERS)
    seed = rng.randrange(2**32)
    used = {p.split("/")[0] for p in (place, *line.split(), *FIXTURES)}

    def change(folder: Path) -> None:
        mine = random.Random(seed)
        cells = sorted((folder / "study" / "cells").rglob("*.npz"))
        file = mine.choice(cells) if place.endswith("CELL") else folder / place
        if file.is_file():
            mutation(file, mine)(file, mine)

    named = (*names, place.rpartition("/")[2])
    return Case(
        f"file: {place.split('/')[0]}",
        tuple(line.split()),
        named,
        files=tuple(sorted(used)),
        change=change,
    )


def folder_case(root: click.Group, rng: random.Random) -> Case:
    """Things of the wrong kind, or with odd names, where a command reads or writes."""
    odd = rng.choice((b"\xff.png", b"[b].png", b"a\nb.png", "🦆.png".encode(), b".png", b"x.PNG"))
    spoilt = rng.choice(("out", "o", "cleaned", "pictures/2", "half/shards", "weights/samples"))
    line = rng.choice(
        (
            "purify pictures cleaned --steps 1",
            "purify pictures cleaned --steps 1 --contact-sheet s.png",
            "purify pictures/0 cleaned --steps 1 --batch 1",
            f"evaluate {QUICK} --data pictures --out out",
            f"evaluate {QUICK} --out out",
            f"evaluate {QUICK} --out half",
            f"{TRAINING} --out out",
            f"analyse trajectories {BASES['analyse trajectories'][0]} --out out",
            "report run --out out",
        )
    )
    as_file = rng.random() < 0.5

    def change(folder: Path) -> None:
        import os

        png = folder / "pictures" / "0" / "0.png"
        if as_file:
            place = folder / spoilt
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("in the way")
        else:
            os.link(png, os.fsencode(png.parent) + b"/" + odd)

    return Case(
        "folder",
        tuple(line.split()),
        (*spoilt.split("/"), "pictures", "png", "image"),
        files=(*FIXTURES, "half", "weights"),
        change=change,
    )
