from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from depure.data import Images
from depure.data.cifar import cifar

torch.set_num_threads(1)

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
FOLDERS = {
    "bin10": "cifar-10-batches-bin",
    "py10": "cifar-10-batches-py",
    "bin100": "cifar-100-binary",
    "py100": "cifar-100-python",
}
Dump = Callable[[dict[str, Any]], bytes]


def named(kind: str) -> list[str]:
    return [f"class {n}" for n in range(100 if kind.endswith("100") else 10)]


def made(seed: int, n: int, classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (n, 3072) over the whole range and labels that include the last one."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n).tolist()
    labels[-1] = classes - 1
    return generator.integers(256, size=(n, 3072), dtype=np.uint8), labels


def parts(kind: str, split: str) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """Content by file name: files of unequal size, so that a mix-up shows."""
    classes = len(named(kind))
    if classes == 100:
        names = [split]
    else:
        names = BATCHES if split == "train" else ["test_batch"]
    first = 0 if split == "train" else 50
    made_parts = [made(first + i, 4 + i, classes) for i in range(len(names))]
    suffix = ".bin" if kind.startswith("bin") else ""
    return {f"{name}{suffix}": part for name, part in zip(names, made_parts, strict=True)}


def records(kind: str, pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    head = "BB" if kind == "bin100" else "B"
    rows = zip(labels, pixels, strict=True)
    return b"".join(
        struct.pack(head, *([label % 20, label] if kind == "bin100" else [label])) + row.tobytes()
        for label, row in rows
    )


def batch(kind: str, pixels: NDArray[np.uint8], labels: list[int]) -> dict[str, Any]:
    key = "fine_labels" if kind == "py100" else "labels"
    coarse = {"coarse_labels": [label % 20 for label in labels]} if kind == "py100" else {}
    names = [f"image_{i}.png" for i in range(len(labels))]
    return {"batch_label": "one of 1", **coarse, key: labels, "data": pixels, "filenames": names}


def meta(kind: str) -> dict[str, Any]:
    if kind == "py100":
        return {"fine_label_names": named(kind), "coarse_label_names": ["a"] * 20}
    return {"num_cases_per_batch": 10000, "label_names": named(kind), "num_vis": 3072}


def write(root: Path, kind: str, dump: Dump = pickle.dumps) -> Path:
    folder = root / FOLDERS[kind]
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        for name, (pixels, labels) in parts(kind, split).items():
            if kind.startswith("bin"):
                (folder / name).write_bytes(records(kind, pixels, labels))
            else:
                (folder / name).write_bytes(dump(batch(kind, pixels, labels)))
    if kind.startswith("bin"):
        name = "fine_label_names.txt" if kind == "bin100" else "batches.meta.txt"
        (folder / name).write_text("\n".join(named(kind)) + "\n\n")
    else:
        (folder / ("meta" if kind == "py100" else "batches.meta")).write_bytes(dump(meta(kind)))
    return folder


def check(images: Images, kind: str, split: str) -> None:
    """Bit for bit against numpy, by another road than the reader's."""
    pixels = np.concatenate([p for p, _ in parts(kind, split).values()])
    labels = [label for _, part in parts(kind, split).values() for label in part]
    expected = pixels.reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255)
    assert images.x.dtype == torch.float32
    assert np.array_equal(images.x.numpy(), expected)
    assert images.y.tolist() == labels
    assert images.index.tolist() == list(range(len(labels)))
    assert images.classes == tuple(named(kind))
    assert images.name == f"cifar{len(named(kind))}/{split}"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", list(FOLDERS))
def test_every_layout_by_its_folder_and_by_the_parent(
    tmp_path: Path, kind: str, split: Any
) -> None:
    folder = write(tmp_path, kind)
    check(cifar(folder, split), kind, split)
    check(cifar(str(tmp_path), split), kind, split)


def test_planes_are_red_green_blue_and_row_by_row(tmp_path: Path) -> None:
    folder = write(tmp_path, "bin10")
    pixels = np.zeros((1, 3072), dtype=np.uint8)
    pixels[0, 1024 + 32 * 5 + 7] = 255  # green, row 5, column 7
    (folder / "test_batch.bin").write_bytes(b"\x03" + pixels.tobytes())
    images = cifar(folder, "test")
    assert torch.nonzero(images.x).tolist() == [[0, 1, 5, 7]]
    assert float(images.x.max()) == 1.0
    assert images.y.tolist() == [3]


# --- pickles -------------------------------------------------------------------------------------


def with_bytes_keys(entries: dict[str, Any]) -> dict[bytes, Any]:
    """What `pickle.load(file, encoding="bytes")` makes of a Python 2 file."""

    def encoded(value: Any) -> Any:
        if isinstance(value, list):
            return [encoded(item) for item in value]
        return value.encode() if isinstance(value, str) else value

    return {key.encode(): encoded(value) for key, value in entries.items()}


@pytest.mark.parametrize("keys", ["str", "bytes"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["py10", "py100"])
def test_files_pickled_again_by_python_3(
    tmp_path: Path, kind: str, protocol: int, keys: str
) -> None:
    def dump(entries: dict[str, Any]) -> bytes:
        return pickle.dumps(entries if keys == "str" else with_bytes_keys(entries), protocol)

    write(tmp_path, kind, dump)
    check(cifar(tmp_path, "train"), kind, "train")
    check(cifar(tmp_path, "test"), kind, "test")


class Python2:
    """Writes protocol 2 as Python 2's cPickle does, opcode by opcode.

    Python 3 has no way to write BINSTRING. Integers take every form there is in turn; lists come
    in APPENDS of `step`, a single last item in an APPEND.
    """

    def __init__(self, step: int = 3) -> None:
        self.memo: dict[str, int] = {}
        self.count = 0
        self.integers = 0
        self.step = step

    def put(self) -> bytes:
        self.count += 1
        return (
            b"q" + bytes([self.count]) if self.count < 256 else struct.pack("<ci", b"r", self.count)
        )

    def get(self, key: str) -> bytes:
        at = self.memo[key]
        return b"h" + bytes([at]) if at < 256 else struct.pack("<ci", b"j", at)

    def string(self, text: str) -> bytes:
        if text in self.memo:
            return self.get(text)
        found = b"U" + bytes([len(text)]) + text.encode() + self.put()
        self.memo[text] = self.count
        return found

    def integer(self, n: int) -> bytes:
        forms = [
            b"K" + bytes([n]),
            struct.pack("<ch", b"M", n),
            struct.pack("<ci", b"J", n),
            b"I%d\n" % n,
            b"L%dL\n" % n,
            b"\x8a\x01" + bytes([n]),
            b"\x8b\x02\x00\x00\x00" + struct.pack("<h", n),
        ]
        self.integers += 1
        return forms[self.integers % len(forms)]

    def list(self, items: list[Any]) -> bytes:
        found = b"]" + self.put()
        for start in range(0, len(items), self.step):
            some = items[start : start + self.step]
            body = b"".join(self.value(item) for item in some)
            found += body + b"a" if len(some) == 1 else b"(" + body + b"e"
        return found

    def call(self, module: str, name: str) -> bytes:
        key = f"{module} {name}"
        if key in self.memo:
            return self.get(key)
        found = f"c{module}\n{name}\n".encode() + self.put()
        self.memo[key] = self.count
        return found

    def array(self, pixels: NDArray[np.uint8]) -> bytes:
        found = self.call("numpy.core.multiarray", "_reconstruct")
        found += self.call("numpy", "ndarray") + b"K\x00\x85" + self.put()
        found += self.string("b") + b"\x87" + self.put() + b"R" + self.put()
        found += b"(K\x01" + struct.pack("<ci", b"J", len(pixels)) + b"M\x00\x0c\x86" + self.put()
        found += self.call("numpy", "dtype") + self.string("u1") + b"K\x00K\x01\x87" + self.put()
        found += (
            b"R" + self.put() + b"(K\x03" + self.string("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
        )
        found += b"K\x00t" + self.put() + b"b\x89"
        return found + struct.pack("<ci", b"T", pixels.size) + pixels.tobytes() + b"tb"

    def value(self, value: Any) -> bytes:
        if isinstance(value, str):
            return self.string(value)
        if isinstance(value, list):
            return self.list(value)
        if isinstance(value, np.ndarray):
            return self.array(value)
        return self.integer(value) if value < 256 else struct.pack("<ci", b"J", value)

    def dump(self, entries: dict[str, Any]) -> bytes:
        found = b"\x80\x02}" + self.put() + b"("
        for key, value in entries.items():
            found += self.string(key) + self.value(value)
        return found + b"u."


def python2(entries: dict[str, Any]) -> bytes:
    return Python2().dump(entries)


@pytest.mark.parametrize("kind", ["py10", "py100"])
def test_files_pickled_by_python_2(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, kind, python2)
    check(cifar(tmp_path, "train"), kind, "train")
    check(cifar(tmp_path, "test"), kind, "test")
    # The handwritten stream is a true pickle: Python reads the same from it.
    (name, (pixels, labels)), *_ = parts(kind, "test").items()
    loaded = pickle.loads((folder / name).read_bytes(), encoding="latin1")
    assert np.array_equal(loaded["data"], pixels)
    assert loaded["fine_labels" if kind == "py100" else "labels"] == labels
    assert loaded["filenames"] == [f"image_{i}.png" for i in range(len(labels))]


@pytest.mark.parametrize("dump", [python2, pickle.dumps], ids=["python2", "python3"])
def test_long_lists_and_a_memo_beyond_one_byte(tmp_path: Path, dump: Dump) -> None:
    folder = write(tmp_path, "py10")
    pixels, labels = made(7, 2345, 10)
    (folder / "test_batch").write_bytes(dump(batch("py10", pixels, labels)))
    images = cifar(folder, "test")
    assert images.y.tolist() == labels
    assert np.array_equal((images.x * 255).round().numpy(), pixels.reshape(-1, 3, 32, 32))


def test_a_key_from_the_memo(tmp_path: Path) -> None:
    # "labels" occurs first as the batch's label, so the key is a BINGET.
    folder = write(tmp_path, "py10")
    pixels, labels = made(3, 5, 10)
    stream = python2({"batch_label": "labels", "labels": labels, "data": pixels})
    assert stream.count(b"labels") == 1
    (folder / "test_batch").write_bytes(stream)
    assert cifar(folder, "test").y.tolist() == labels


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def traps(sprung: Path) -> dict[str, bytes]:
    pixels, labels = made(0, 2, 10)
    good = batch("py10", pixels, labels)
    path = str(sprung).encode()
    shell = b"S'mkdir %s'\n" % path
    return {
        "alone": pickle.dumps(Trap(sprung), 2),
        "beside good data": pickle.dumps({**good, "more": Trap(sprung)}, 2),
        "by STACK_GLOBAL": pickle.dumps({**good, "more": Trap(sprung)}, 4),
        "as the labels": pickle.dumps({**good, "labels": Trap(sprung)}, 5),
        "in Python 2": b"\x80\x02cos\nsystem\nU"
        + bytes([6 + len(path)])
        + b"mkdir "
        + path
        + b"\x85R.",
        "by INST": b"(" + shell + b"ios\nsystem\n.",
        "by OBJ": b"(cos\nsystem\n" + shell + b"o.",
    }


@pytest.mark.parametrize("kind", list(traps(Path("x"))))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, kind: str) -> None:
    folder, sprung = write(tmp_path, "py10"), tmp_path / "sprung"
    pickle.loads(traps(sprung)[kind])  # the control: it does bite whoever unpickles it
    assert sprung.is_dir()
    sprung.rmdir()
    for name in ("test_batch", "batches.meta"):
        (folder / name).write_bytes(traps(sprung)[kind])
        with pytest.raises(ValueError, match=rf"cannot read .*{name} \(it (asks|has)"):
            cifar(folder, "test")
        assert not sprung.exists()


def test_the_error_names_the_call(tmp_path: Path) -> None:
    folder = write(tmp_path, "py10")
    (folder / "test_batch").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=r"asks to call '\w+\.mkdir'.*; nothing was called"):
        cifar(folder, "test")


# --- limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bin10", "py10"])
def test_limit_is_balanced_and_keeps_the_indices(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    whole, some = cifar(tmp_path, "train"), cifar(tmp_path, "train", limit=13, seed=3)
    expected = whole.sample(13, seed=3)
    assert torch.equal(some.index, expected.index)
    assert torch.equal(some.x, expected.x)
    assert torch.equal(some.y, expected.y)
    assert len(some.y.unique()) == len(whole.y.unique())
    assert not torch.equal(some.index, cifar(tmp_path, "train", limit=13).index)


@pytest.mark.parametrize("limit", [0, 5])
def test_limit_out_of_range(tmp_path: Path, limit: int) -> None:
    write(tmp_path, "bin10")
    with pytest.raises(ValueError, match=f"cannot pick {limit} of 4 images"):
        cifar(tmp_path, "test", limit=limit)


# --- damage --------------------------------------------------------------------------------------

PIXELS, LABELS = made(0, 4, 10)
BAD_RECORDS = [
    ("bin10", b"", "0 bytes are not one or more records of 3073"),
    ("bin10", bytes(3073 * 2 - 1), "6145 bytes are not one or more records of 3073"),
    (
        "bin10",
        bytes(3073) + b"\x0a" + bytes(3072),
        r"labels must lie in 0 \.\. 9; it has 0 \.\. 10",
    ),
    ("bin100", bytes(3073), "3073 bytes are not one or more records of 3074"),
    ("bin100", b"\x14\x00" + bytes(3072), r"labels must lie in 0 \.\. 19; it has 0 \.\. 20"),
    ("bin100", b"\x13\x64" + bytes(3072), r"labels must lie in 0 \.\. 99; it has 0 \.\. 100"),
]


@pytest.mark.parametrize(("kind", "content", "message"), BAD_RECORDS)
def test_damaged_binary_files(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    name = "test_batch.bin" if kind == "bin10" else "test.bin"
    archive = rf"download and unpack cifar-{kind[3:]}-binary\.tar\.gz again"
    (write(tmp_path, kind) / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*{name} \({message}\): {archive}"):
        cifar(tmp_path, "test")


BAD_BATCHES: list[tuple[Any, str]] = [
    ({"labels": LABELS[:3], "data": PIXELS}, "3 labels, 4 rows and 12288 bytes"),
    ({"labels": LABELS, "data": PIXELS[:3]}, "4 labels, 3 rows and 9216 bytes"),
    ({"labels": [0, 1, 2, 10], "data": PIXELS}, r"labels must lie in 0 \.\. 9; it has 0 \.\. 10"),
    ({"labels": [0, 1, 2, -1], "data": PIXELS}, r"labels must lie in 0 \.\. 9; it has -1 \.\. 2"),
    ({"labels": [0, 1, 2, 2**70], "data": PIXELS}, r"labels must lie in 0 \.\. 9"),
    ({"labels": [0, 1, 2, "3"], "data": PIXELS}, "labels are no list of integers"),
    ({"labels": [False, True, True, True], "data": PIXELS}, "labels are no list of integers"),
    ({"labels": tuple(LABELS), "data": PIXELS}, "labels are no list of integers"),
    ({"labels": [], "data": PIXELS}, "labels are no list of integers"),
    ({"fine_labels": LABELS, "data": PIXELS}, "has no entry 'labels'"),
    ({"labels": LABELS}, "has no entry 'data'"),
    ({"labels": LABELS, "data": PIXELS.tobytes()}, "no row-major numpy array of uint8"),
    ({"labels": LABELS, "data": PIXELS.view(np.int8)}, "no row-major numpy array of uint8"),
    ({"labels": LABELS, "data": np.asfortranarray(PIXELS)}, "no row-major numpy array of uint8"),
    ({"labels": LABELS, "data": PIXELS.reshape(4, 32, 32, 3)}, r"not the shape \(N, 3072\)"),
    ({"labels": LABELS, "data": PIXELS.reshape(2, 6144)}, r"not the shape \(N, 3072\)"),
    ({1: LABELS}, "keys that are no strings"),
    (LABELS, "holds no dictionary"),
    ({"labels": {1}}, "opcode EMPTY_SET, which CIFAR does not use"),
]


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(("content", "message"), BAD_BATCHES)
def test_wrong_content_of_a_batch(
    tmp_path: Path, content: Any, message: str, protocol: int
) -> None:
    if "EMPTY_SET" in message and protocol == 2:
        message = "asks to call '__builtin__.set'"
    (write(tmp_path, "py10") / "test_batch").write_bytes(pickle.dumps(content, protocol))
    archive = r"download and unpack cifar-10-python\.tar\.gz again"
    with pytest.raises(ValueError, match=rf"cannot read .*test_batch \(.*{message}.*\): {archive}"):
        cifar(tmp_path, "test")


def test_pixels_that_are_more_than_the_rows(tmp_path: Path) -> None:
    stream = python2(batch("py10", PIXELS, LABELS[:3]))
    four, three = (struct.pack("<cich", b"J", n, b"M", 3072) for n in (4, 3))
    assert stream.count(four) == 1
    (write(tmp_path, "py10") / "test_batch").write_bytes(stream.replace(four, three))
    with pytest.raises(ValueError, match="3 labels, 3 rows and 12288 bytes of pixels"):
        cifar(tmp_path, "test")


BAD_STREAMS = [
    (b"", "exhausted before seeing STOP"),
    (b"not a pickle", "opcode"),
    (b"\x80\x02.", "damaged: IndexError"),
    (b"\x80\x02e.", "damaged: IndexError"),
    (b"\x80\x02h\x07.", "damaged: KeyError"),
    (b"\x80\x02K\x01K\x02R.", "damaged: AttributeError"),
    (b"\x80\x02}(U\x01au.", "damaged|longer|shorter"),
    (b"\x80\x02T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "expected 9223372036854775807 bytes"),
]


@pytest.mark.parametrize(("content", "message"), BAD_STREAMS)
def test_streams_that_are_no_pickle(tmp_path: Path, content: bytes, message: str) -> None:
    (write(tmp_path, "py10") / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*test_batch \(.*({message})"):
        cifar(tmp_path, "test")


def streams() -> dict[str, bytes]:
    entries = batch("py10", PIXELS[:2], LABELS[:2])
    found = {f"protocol {p}": pickle.dumps(entries, p) for p in (2, 3, 4, 5)}
    return {**found, "python2": python2(entries)}


@pytest.mark.parametrize("kind", list(streams()))
def test_a_truncated_pickle_is_refused_wherever_it_ends(tmp_path: Path, kind: str) -> None:
    folder, stream = write(tmp_path, "py10"), streams()[kind]
    ends = {*range(350), *range(350, len(stream), 501), *range(len(stream) - 150, len(stream))}
    for end in sorted(ends):
        (folder / "test_batch").write_bytes(stream[:end])
        with pytest.raises(ValueError, match=r"cannot read .*test_batch"):
            cifar(folder, "test")


@pytest.mark.parametrize("kind", list(streams()))
def test_any_damage_gives_images_or_a_value_error(tmp_path: Path, kind: str) -> None:
    folder, stream = write(tmp_path, "py10"), streams()[kind]
    generator = np.random.default_rng(1)
    at = stream.index(PIXELS[:1].tobytes()[:8]) if kind != "protocol 2" else 400
    structure = [i for i in range(len(stream)) if not at <= i < len(stream) - 200]
    refused = 0
    for place in generator.choice(structure, size=200):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << int(generator.integers(8))
        (folder / "test_batch").write_bytes(damaged)
        try:
            images = cifar(folder, "test")
        except ValueError:
            refused += 1
        else:
            assert images.x.shape == (2, 3, 32, 32)
    assert 50 < refused < 200


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_class_names_must_be_as_many_as_the_classes(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, kind)
    count = len(named(kind))
    if kind.startswith("bin"):
        file = folder / ("batches.meta.txt" if count == 10 else "fine_label_names.txt")
        file.write_text("cat\ndog\n")
    else:
        file = folder / ("batches.meta" if count == 10 else "meta")
        key = "label_names" if count == 10 else "fine_label_names"
        file.write_bytes(pickle.dumps({key: ["cat", "dog"]}))
    with pytest.raises(ValueError, match=rf"{file.name} \(it has 2 class names instead of {count}"):
        cifar(folder, "test")


@pytest.mark.parametrize(("names", "message"), [("cat", "are no list"), ([1] * 10, "int where")])
def test_class_names_must_be_a_list_of_strings(tmp_path: Path, names: Any, message: str) -> None:
    (write(tmp_path, "py10") / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(ValueError, match=message):
        cifar(tmp_path, "test")


# --- folders -------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "py10")
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing: unpack cifar-10-python"):
        cifar(tmp_path, "train")
    assert len(cifar(tmp_path, "test")) == 4
    (folder / "batches.meta").unlink()
    with pytest.raises(FileNotFoundError, match=r"batches\.meta is missing"):
        cifar(tmp_path, "test")


def test_the_binary_version_is_preferred(tmp_path: Path) -> None:
    write(tmp_path, "py10")
    folder = write(tmp_path, "bin10")
    assert cifar(tmp_path, "test").y.tolist() == cifar(folder, "test").y.tolist()
    (tmp_path / FOLDERS["py10"] / "test_batch").write_bytes(b"damaged")
    assert len(cifar(tmp_path, "test")) == 4


def test_two_data_sets_side_by_side_are_ambiguous(tmp_path: Path) -> None:
    ten, hundred = write(tmp_path, "py10"), write(tmp_path, "bin100")
    with pytest.raises(ValueError, match=r"both CIFAR-10 and CIFAR-100: pass .*py or .*binary"):
        cifar(tmp_path, "test")
    assert len(cifar(ten, "test").classes) == 10
    assert len(cifar(hundred, "test").classes) == 100


def test_a_stray_file_is_no_data_set(tmp_path: Path) -> None:
    write(tmp_path, "bin10")
    (tmp_path / "test").write_text("notes")
    assert cifar(tmp_path, "test").name == "cifar10/test"


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none does not exist: pass the folder"):
        cifar(tmp_path / "none", "test")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file is a file, not a folder"):
        cifar(tmp_path / "file", "test")
    (tmp_path / "train").mkdir()  # an image folder looks like this, and is no CIFAR-100
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no CIFAR in .*: looked there") as caught:
        cifar(tmp_path, "test")
    assert all(name in str(caught.value) for name in FOLDERS.values())


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='must be "train" or "test"; got \'val\''):
        cifar(tmp_path, "val")  # type: ignore[arg-type]
