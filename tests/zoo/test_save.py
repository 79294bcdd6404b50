"""Saved models: read back before they count, never a mixture of two."""

from pathlib import Path

import pytest
import torch

from depure import weights as disk
from depure.diffusion import Karras, VPDiscrete
from depure.files import read_json
from depure.zoo import CifarResNet, load_denoiser, save
from depure.zoo.build import new_unet
from depure.zoo.save import save_classifier, save_denoiser


def unet(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return new_unet(8, 1, (8, 8))


def test_the_folder_is_what_diffusers_writes(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = unet(0).eval()
    files = save_denoiser(network, VPDiscrete.linear(), tmp_path / "ours")
    assert sorted(p for p in (tmp_path / "ours").rglob("*") if p.is_file()) == sorted(files)
    read = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet")
    read.save_pretrained(tmp_path / "theirs")
    ours, theirs = tmp_path / "ours" / "unet", tmp_path / "theirs"
    weights = "diffusion_pytorch_model.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    config = read_json(theirs / "config.json")
    assert {**read_json(ours / "config.json"), "_diffusers_version": diffusers.__version__} == {
        k: v for k, v in config.items() if k != "_name_or_path"
    }
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0, 700])
    with torch.no_grad():
        assert torch.equal(read(x, t).sample, network(x, t))
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "ours" / "scheduler")
    assert torch.equal(scheduler.betas, torch.tensor(VPDiscrete.linear().betas))


def test_a_network_of_diffusers_is_written_too(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(**unet(0).config.to_config()).eval()
    network.requires_grad_(False)  # as loaded; linear layers that train round otherwise
    save_denoiser(network, VPDiscrete.linear(), tmp_path)
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0, 700])
    assert torch.equal(load_denoiser(str(tmp_path)).network(x, t), network(x, t).sample)


def test_what_does_not_read_back_is_an_error_and_the_old_model_stays(tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    network = CifarResNet(8, 4)
    save_classifier(network, file)
    before = file.read_bytes()
    real = disk.save_file

    def silent(tensors, name, facts):
        pass

    def other(tensors, name, facts):
        real({k: v + 1 for k, v in tensors.items()}, name, facts)

    for writer in (silent, other):
        monkeypatch.setattr(disk, "save_file", writer)
        with pytest.raises(OSError, match=r"cannot write .*c\.safetensors .*does not read back"):
            save_classifier(network, file)
        assert file.read_bytes() == before
        assert list(tmp_path.iterdir()) == [file]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 4))
def test_a_kill_while_another_model_is_replaced_leaves_no_mixture(tmp_path, monkeypatch, at):
    save_denoiser(unet(0), VPDiscrete.linear(), tmp_path)
    real, calls = Path.replace, []

    def kill(self, target):
        calls.append(target)
        if len(calls) == at:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(Killed):
        save_denoiser(unet(1), Karras(), tmp_path)
    monkeypatch.setattr(Path, "replace", real)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_denoiser(str(tmp_path))
    save_denoiser(unet(1), Karras(), tmp_path)
    assert isinstance(load_denoiser(str(tmp_path)).schedule, Karras)


def test_new_weights_of_the_same_model_are_one_renaming(tmp_path, monkeypatch):
    save_denoiser(unet(0), VPDiscrete.linear(), tmp_path)
    real, calls = Path.replace, []
    monkeypatch.setattr(Path, "replace", lambda s, t: (calls.append(t), real(s, t))[1])
    save_denoiser(unet(1), VPDiscrete.linear(), tmp_path)
    assert [c.name for c in calls] == ["diffusion_pytorch_model.safetensors"]


def test_only_networks_with_settings(tmp_path):
    with pytest.raises(ValueError, match=r"only a UNet or a model of diffusers .* got CifarResNet"):
        save.save_denoiser(CifarResNet(8, 4), VPDiscrete.linear(), tmp_path)
