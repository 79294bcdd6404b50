from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from depure.data import digits
from depure.diffusion import VPDiscrete
from depure.files import read_json
from depure.training import accuracy
from depure.weights import read_config
from depure.zoo import CifarResNet, SmallCNN, load_classifier, load_denoiser
from depure.zoo.classifier import BUNDLED

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)


def perturbed(network: nn.Module) -> nn.Module:
    """In eval mode, with running statistics that are not the defaults."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    ("arch", "network", "shape"),
    [
        ("small-cnn", SmallCNN(3, 7, 12), (2, 3, 8, 8)),
        ("resnet20", CifarResNet(20, 5), (2, 3, 16, 16)),
        ("resnet32", CifarResNet(32, 100), (2, 3, 16, 16)),
    ],
)
def test_saved_classifiers_come_back_frozen(
    tmp_path: Path, arch: str, network: nn.Module, shape: tuple[int, ...]
) -> None:
    perturbed(network)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    loaded = load_classifier(f"{arch}:{tmp_path / 'net.safetensors'}")
    x = torch.rand(shape)
    assert torch.equal(loaded(x), network(x))
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_bundled_classifier_is_good() -> None:
    classifier = load_classifier("digits")
    assert accuracy(classifier, digits("test")) >= 0.97
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("spec", ["", "digit", "resnet18:x.safetensors", "resnet20", "resnet20:"])
def test_unknown_specs_list_what_there_is(spec: str) -> None:
    with pytest.raises(ValueError, match=r'expected "digits", .* small-cnn, resnet20, .*resnet110'):
        load_classifier(spec)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*net\.safetensors: pass"):
        load_classifier(f"resnet20:{tmp_path / 'net.safetensors'}")
    (tmp_path / "net.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"net\.pth beside it is a pickle, which is never"):
        load_classifier(f"resnet20:{tmp_path / 'net.safetensors'}")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_weights(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "net.safetensors"
    save_file(SmallCNN(1, 10, 8).state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"damaged or no safetensors file .*: download"):
        load_classifier(f"small-cnn:{path}")


def test_a_pickle_with_the_wrong_suffix(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    torch.save(SmallCNN(1, 10, 8).state_dict(), path)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        load_classifier(f"small-cnn:{path}")


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(CifarResNet(20).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"does not fit CifarResNet in 60 places .*; \.\.\.\): use"
    ):
        load_classifier(f"resnet32:{path}")
    with pytest.raises(ValueError, match="does not hold the chosen architecture"):
        load_classifier(f"small-cnn:{path}")
    save_file({"linear.bias": torch.zeros(10), "features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="does not hold the chosen architecture"):
        load_classifier(f"small-cnn:{path}")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_one_misfit_is_named(tmp_path: Path, change: str) -> None:
    tensors = SmallCNN(1, 10, 8).state_dict()
    if change == "missing":
        del tensors["features.1.bias"]
    elif change == "extra":
        tensors["head.bias"] = torch.zeros(1)
    else:
        tensors["features.3.weight"] = torch.zeros(8, 8, 1, 1)
    save_file(tensors, tmp_path / "net.safetensors")
    name = {"missing": "features.1.bias is missing", "extra": "head.bias is not part of it"}
    message = name.get(change, r"features.3.weight is \(8, 8, 1, 1\), not \(8, 8, 3, 3\)")
    with pytest.raises(ValueError, match=rf"in 1 places \({message}\)"):
        load_classifier(f"small-cnn:{tmp_path / 'net.safetensors'}")


def tiny_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=4,
    )


@pytest.fixture
def pipeline(tmp_path: Path) -> tuple[Path, UNet2DModel]:
    unet = tiny_unet()
    perturbed(unet)
    unet.save_pretrained(tmp_path / "pipe" / "unet")
    DDPMScheduler(num_train_timesteps=77).save_pretrained(tmp_path / "pipe" / "scheduler")
    return tmp_path / "pipe", unet


def same(left: nn.Module, right: nn.Module) -> bool:
    x, t = torch.rand(2, 1, 4, 4), torch.tensor([3, 40])
    right.requires_grad_(False)  # as loaded; linear layers that train round otherwise
    return torch.equal(left(x, t), right(x, t).sample)


def lay_out(root: Path, layout: str) -> Path:
    """Move a pipeline folder into another layout; give the folder to load."""
    if layout == "pipeline":
        return root
    if layout == "unet beside scheduler":
        return root / "unet"
    shutil.copy(root / "scheduler" / "scheduler_config.json", root / "unet")
    shutil.rmtree(root / "scheduler")
    return Path(shutil.move(root / "unet", root.parent / "flat"))


@pytest.mark.parametrize("layout", ["pipeline", "unet beside scheduler", "all in one folder"])
def test_unet_layouts(pipeline: tuple[Path, UNet2DModel], layout: str) -> None:
    root, unet = pipeline
    denoiser = load_denoiser(str(lay_out(root, layout)))
    loaded = denoiser.network
    assert same(loaded, unet)
    assert len(denoiser.schedule) == 77
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_attention_names_of_early_diffusers(pipeline: tuple[Path, UNet2DModel]) -> None:
    root, unet = pipeline
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(root / "unet" / WEIGHTS).items():
        for new, early in old.items():
            name = name.replace(f".{new}.", f".{early}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, root / "unet" / WEIGHTS)
    assert same(load_denoiser(str(root)).network, unet)


def test_bundled_unet() -> None:
    denoiser = load_denoiser("digits")
    assert denoiser(torch.rand(2, 1, 8, 8), 999).eps.shape == (2, 1, 8, 8)
    assert denoiser.schedule == VPDiscrete.linear()


def test_broken_unet_folders(pipeline: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    root, _ = pipeline
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        load_denoiser(str(tmp_path / "none"))
    shutil.move(root / "scheduler", tmp_path / "kept")
    with pytest.raises(ValueError, match="no scheduler found beside the network"):
        load_denoiser(str(root))
    shutil.move(tmp_path / "kept", root / "scheduler")
    (root / "unet" / WEIGHTS).rename(root / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.bin beside it is a pickle"):
        load_denoiser(str(root))
    save_file({"a": torch.zeros(1)}, root / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match="does not fit UNet "):
        load_denoiser(str(root))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds an array; expected a JSON object"),
        (json.dumps({"_class_name": "UNet2DConditionModel"}), "describes 'UNet2DConditionModel'"),
    ],
)
def test_broken_config(pipeline: tuple[Path, UNet2DModel], text: str, message: str) -> None:
    root, _ = pipeline
    (root / "unet" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_denoiser(str(root))


def test_bundled_relatives_of_the_digits_models() -> None:
    start = load_denoiser("digits")
    for name in ("digits-addt", "digits-control"):
        found = load_denoiser(name)
        assert found.schedule == start.schedule
        pairs = zip(found.parameters(), start.parameters(), strict=True)
        assert sum(float((a - b).abs().sum()) for a, b in pairs) > 1
    assert accuracy(load_classifier("digits-adversarial"), digits("test")) > 0.97


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_out_channels": [10**12, 10**12]}, "block_out_channels must be a list of whole"),
        ({"layers_per_block": 10**6}, "layers_per_block must be a whole number from 1 to 64"),
        ({"layers_per_block": "x"}, "layers_per_block must be a whole number"),
        ({"down_block_types": ["DownBlock2D"] * 100}, "down_block_types must be a list as long as"),
        ({"norm_num_groups": 0}, "norm_num_groups must be a whole number"),
        ({"block_out_channels": 3}, "block_out_channels must be a list of whole"),
        ({"made_up": 3}, "made_up is no setting of this UNet"),
        ({"block_out_channels": [2**20, 2**20]}, "does not fit UNet "),  # built of no memory
    ],
)
def test_settings_of_a_unet_that_would_take_hours_or_all_memory(tmp_path, change, said):
    shutil.copytree(BUNDLED / "digits" / "denoiser", tmp_path / "d")
    file = tmp_path / "d" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=said):
        load_denoiser(str(tmp_path / "d"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be a whole number"),
        ({"trained_betas": None, "beta_schedule": "linear", "beta_start": "x"}, "beta_start must"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas must be a finite number"),
        ({"trained_betas": 3}, "trained_betas must be a list of numbers"),
        ({"prediction_type": []}, "prediction_type must be one of"),
    ],
)
def test_settings_of_a_scheduler_are_checked(tmp_path, change, said):
    shutil.copytree(BUNDLED / "digits" / "denoiser", tmp_path / "d")
    file = tmp_path / "d" / "scheduler" / "scheduler_config.json"
    config = {"trained_betas": None, "beta_schedule": "linear", **json.loads(file.read_text())}
    file.write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=said):
        load_denoiser(str(tmp_path / "d"))


@pytest.mark.parametrize(
    "text",
    ["NaN", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000, '{"a": ' + "9" * 6000 + "}", "null"],
)
def test_json_that_is_no_plain_settings(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    for read in (read_config, read_json):
        with pytest.raises(ValueError, match=r"config\.json is (not valid JSON|damaged)") as stop:
            read(file)
        assert "recursion" not in str(stop.value)
        assert "Exceeds" not in str(stop.value)
