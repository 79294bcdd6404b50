"""Fresh networks, and folders that load again."""

import pytest
import torch

from depure.diffusion import VPSDE, Karras, VPDiscrete
from depure.zoo import load_classifier, load_denoiser
from depure.zoo.build import new_classifier, new_unet
from depure.zoo.save import save_classifier, save_denoiser


@pytest.mark.parametrize(
    ("schedule", "loaded", "prediction"),
    [
        (VPDiscrete.cosine(50), VPDiscrete.cosine(50), "epsilon"),
        (VPSDE(), VPSDE().discrete(), "epsilon"),
        (Karras(sigma_data=0.3, sigma_max=10.0), Karras(sigma_data=0.3, sigma_max=10.0), "edm"),
    ],
    ids=["discrete", "vpsde", "edm"],
)
def test_denoisers_come_back(tmp_path, schedule, loaded, prediction):
    network = new_unet(8, 1, (8, 16), attention=(4,), dropout=0.2).eval()
    save_denoiser(network, schedule, tmp_path)
    found = load_denoiser(str(tmp_path))
    assert found.schedule == loaded
    assert found.prediction == prediction
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 4.0])
    assert torch.equal(found.network(x, t), network(x, t))


def test_unets_are_what_was_asked_for():
    config = new_unet(16, 3, (32, 64, 64), layers=2, attention=(8,), dropout=0.1).config
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert config.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert (config.sample_size, config.in_channels, config.layers_per_block) == (16, 3, 2)
    assert (config.norm_num_groups, config.dropout) == (8, 0.1)
    assert new_unet(4, 3, (128, 256)).config.norm_num_groups == 32
    with pytest.raises(ValueError, match="multiples of 8"):
        new_unet(8, 1, (12, 24))


@pytest.mark.parametrize("arch", ["small-cnn", "small-cnn-8", "resnet20"])
def test_classifiers_come_back(tmp_path, arch):
    network = new_classifier(arch, 3, 7).eval()
    save_classifier(network, tmp_path / "c.safetensors")
    kind = "resnet20" if arch == "resnet20" else "small-cnn"
    found = load_classifier(f"{kind}:{tmp_path / 'c.safetensors'}")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(found(x), network(x))
    with pytest.raises(ValueError, match="no architecture 'small-cnn-x'"):
        new_classifier("small-cnn-x", 3, 7)
