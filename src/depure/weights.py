"""Weights and configuration from disk, and no code with them.

Safetensors and JSON; what exists only as a pickle goes through torch's restricted loader.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from depure.files import parse_json, plain, replacing

# What reading a damaged or hostile file may raise, whichever of its layers notices.
UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file.

    Raises:
        FileNotFoundError: there is no such file; a pickle beside it is pointed out.
        ValueError: it is damaged, or no safetensors file.
    """
    if not path.is_file():
        pickles = [p.name for s in (".bin", ".pt", ".pth") if (p := path.with_suffix(s)).is_file()]
        found = f"; {pickles[0]} beside it is a pickle, which is never opened" if pickles else ""
        raise FileNotFoundError(
            f"no weights at {path}{found}: pass a .safetensors file (diffusers and safetensors "
            "can convert)"
        )
    try:
        if plain(str(path)) == str(path):
            return load_file(path)
        return load(path.read_bytes())  # `load_file` takes no name that is not UTF-8
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): download or convert it again"
        ) from error


def parse_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file's bytes; `safe_open` takes names in UTF-8 alone.

    Raises:
        Exception: one of `UNREADABLE`, or a SafetensorError: it is damaged.
    """
    tensors, size = load(data), int.from_bytes(data[:8], "little")
    return tensors, dict(json.loads(data[8 : 8 + size]).get("__metadata__", {}))


def restricted_load(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors in plain containers; code in it is never run.

    Raises:
        RuntimeError: torch is older than 2.6, whose restricted loader could be tricked.
        Exception: one of `UNREADABLE`: the file is damaged, or holds anything else.
    """
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):
        raise RuntimeError(
            f"torch {torch.__version__} can be made to run code in a .pt file (CVE-2025-32434), "
            f"torch 2.6 or newer cannot"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; torch's go on for many."""
    return (str(error).splitlines() or ["it ends too early, or is no such file"])[0][:200]


def in_words(error: BaseException) -> str:
    """What a library that reads says for itself; not what damage makes Python say."""
    where = _raised_in(error)
    said = type(error) is ValueError and ("numpy" in where or "depure" in where)
    said |= type(error) is RuntimeError or isinstance(error, pickle.UnpicklingError)
    return first_line(error) if said else "it is damaged"


def _raised_in(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def check_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not those of the network, by name and shape.

    Raises:
        ValueError: what does not fit, in one sentence.
    """
    expected = network.state_dict()
    # A counter that only training reads; many published files leave it out.
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in expected.keys() - optional - tensors.keys()]
    problems += [f"{name} is not part of it" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ValueError(
            f"{path} does not fit {type(network).__name__} in {len(problems)} places ({shown}): "
            "use the architecture or configuration it was trained with"
        )


def fit_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the tensors strictly.

    Raises:
        ValueError: what does not fit, in one sentence.
    """
    check_weights(network, tensors, path)
    network.load_state_dict(tensors, strict=True)


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object of one file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: pass a folder in the layout of diffusers")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again") from error


def write_safetensors(
    tensors: dict[str, Tensor], path: Path, facts: dict[str, str] | None = None
) -> None:
    """Write one file atomically: it is there whole, or as it was before.

    Args:
        tensors: contiguous, none sharing memory.
        path: its folder is made if it is missing.
        facts: kept as the file's metadata.

    Raises:
        OSError: it cannot be written (a full disk, no permission).
    """
    with replacing(path) as file:
        save_tensors(tensors, file, facts)


def save_tensors(
    tensors: dict[str, Tensor], file: Path, facts: dict[str, str] | None = None
) -> None:
    """Write to a temporary file that the caller puts in place, see `replacing`.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(tensors, file, facts)
    except SafetensorError as error:  # a full disk, as safetensors says it
        raise OSError(str(error)) from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (first 16 hex digits) over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
