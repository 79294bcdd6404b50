"""Load bundled or published weights: safetensors only, nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from depure.zoo.nets import CifarResNet, SmallCNN

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_BUNDLED = Path(__file__).parent / "weights"
_RESNET_DEPTHS = (20, 32, 44, 56, 110)
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_classifier(spec: str) -> nn.Module:
    """A classifier of images in ``[0, 1]`` to logits, frozen and in eval mode.

    Args:
        spec: ``"digits"`` for the bundled one (8x8 greyscale), or ``"ARCH:PATH.safetensors"`` with
            ARCH one of small-cnn, resnet20, resnet32, resnet44, resnet56, resnet110 (CIFAR).
            Widths and numbers of classes are read off the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the architecture is unknown, the file is damaged or no safetensors file, or
            its tensors do not fit the architecture.

    Example:
        >>> load_classifier("digits")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if spec == "digits":
        return _load_classifier(small_cnn_of, _BUNDLED / "digits" / "classifier.safetensors")
    arch, _, path = spec.partition(":")
    builder = _BUILDERS.get(arch)
    if builder is None or not path:
        raise ValueError(
            f'no classifier {spec!r}: expected "digits" or "ARCH:PATH.safetensors" with ARCH one '
            f"of {', '.join(_BUILDERS)}"
        )
    return _load_classifier(builder, Path(path))


def load_unet(spec: str) -> tuple[UNet2DModel, dict[str, Any]]:
    """A diffusers UNet, frozen and in eval mode, and its scheduler's configuration.

    Args:
        spec: ``"digits"`` for the bundled one (8x8 greyscale), or a folder in the layout of
            diffusers: a pipeline (``unet/`` and ``scheduler/``, or both at the root), or a
            ``unet`` folder with ``scheduler/`` or ``scheduler_config.json`` inside or beside it.

    Raises:
        FileNotFoundError: the folder, or a file it needs, does not exist.
        ValueError: a file is damaged, no UNet2DModel, or does not fit its configuration.
    """
    from diffusers import UNet2DModel  # takes seconds to import

    root = _BUNDLED / "digits" / "denoiser" if spec == "digits" else Path(spec)
    if not root.is_dir():
        raise FileNotFoundError(
            f'no folder at {root}: pass "digits" or a folder with unet/ and scheduler/'
        )
    folder = root / "unet" if (root / "unet").is_dir() else root
    config = _read_config(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"{folder / 'config.json'} describes {config.get('_class_name')!r}; "
            "expected a UNet2DModel that works on pixels"
        )
    scheduler = _read_config(_find_scheduler(root, folder))
    build: Callable[[dict[str, Any]], Any] = UNet2DModel.from_config
    unet = build(config)
    tensors = read_safetensors(folder / _WEIGHTS)
    _fit(unet, _modern_names(tensors), folder / _WEIGHTS)
    return unet.eval().requires_grad_(False), scheduler


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
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): download or convert it again"
        ) from error


def small_cnn_of(tensors: Mapping[str, Tensor]) -> SmallCNN:
    """An untrained :class:`SmallCNN` of the size that the tensors have.

    Raises:
        KeyError: a tensor that tells the size is missing.
    """
    width, channels = tensors["features.0.weight"].shape[:2]
    return SmallCNN(channels, len(tensors["linear.bias"]), width)


def _resnet_of(depth: int) -> Callable[[Mapping[str, Tensor]], nn.Module]:
    return lambda tensors: CifarResNet(depth, len(tensors["linear.bias"]))


_BUILDERS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "small-cnn": small_cnn_of,
    **{f"resnet{depth}": _resnet_of(depth) for depth in _RESNET_DEPTHS},
}


def _load_classifier(build: Callable[[Mapping[str, Tensor]], nn.Module], path: Path) -> nn.Module:
    tensors = read_safetensors(path)
    try:
        network = build(tensors)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the chosen architecture ({error} is missing): "
            "name the architecture it was trained with"
        ) from error
    _fit(network, tensors, path)
    return network.eval().requires_grad_(False)


def _fit(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the tensors strictly, or say in one sentence what does not fit."""
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
    network.load_state_dict(tensors, strict=True)


def _modern_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoints from before diffusers 0.15 call the parts of an attention block otherwise."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for name, tensor in tensors.items():
        block, _, end = name.rpartition(".")
        parent, _, part = block.rpartition(".")
        modern = f"{parent}.{old[part]}.{end}" if "attentions." in parent and part in old else name
        renamed[modern] = tensor
    return renamed


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: pass a folder in the layout of diffusers")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a JSON {type(config).__name__}; expected an object")
    return config


def _find_scheduler(root: Path, folder: Path) -> Path:
    """A network without its schedule cannot be used: guessing one would give silent nonsense."""
    name = "scheduler_config.json"
    places = [root / "scheduler" / name, root / name]
    if folder == root and root.name == "unet":
        places += [root.parent / "scheduler" / name, root.parent / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no {name} for {folder}: put the one it was trained with at {places[0]}"
    )
