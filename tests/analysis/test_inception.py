"""Inception's features, with random weights in files like the published one."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from depure.analysis import Features, inception, inception_features, quality
from depure.analysis.inception import FIDInception, load_inception, prepare
from depure.analysis.quality import fid
from depure.data.images import Images
from depure.defences import Defended
from depure.diffusion import DDIM, Denoiser, VPDiscrete
from depure.purifiers import DiffPure
from depure.reporting.plots.quality import quality_figure

COUNTER = "num_batches_tracked"


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    """The same on every machine; statistics of batch norms far from their defaults."""
    g, found = np.random.default_rng(0), {}
    for name, like in sorted(network.state_dict().items()):
        if name.endswith(COUNTER):
            continue
        z = g.standard_normal(tuple(like.shape))
        if name.endswith(("running_var", "bn.weight")):
            z = 0.5 + z**2 / (1 + z**2)
        else:
            z *= (2 / np.prod(z.shape[1:])) ** 0.5 if z.ndim > 1 else 0.2
        found[name] = torch.from_numpy(z.astype(np.float32))
    return found


@pytest.fixture(scope="module")
def network() -> FIDInception:
    network = FIDInception()
    network.load_state_dict(random_weights(network), strict=True)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def file(network: FIDInception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: with the layer of the 1008 classes, which features do not use."""
    path = tmp_path_factory.mktemp("inception") / "like-the-published.pth"
    state = network.state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    torch.save(state, path)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that the network takes: a sixteenth of the time."""
    monkeypatch.setattr(inception, "_SIDE", 75)


def groups(features: Tensor) -> list[list[float]]:
    """Means over what each branch of the last block gives."""
    return [[part.mean().item() for part in row.split((320, 768, 768, 192))] for row in features]


def test_names_and_shapes_are_those_of_the_published_network(network):
    """The digest was made of pytorch-fid's network over torchvision's, without its last layer."""
    state = sorted(network.state_dict().items())
    lines = [f"{name} {tuple(t.shape)}" for name, t in state if not name.endswith(COUNTER)]
    assert len(lines) == 470
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "e22ffc91a09f7caa1af2ce051c7ddf26018012910da85827a0b035b343f00177"


def test_features_are_those_of_the_published_network(network):
    """Known answers: pytorch-fid's network with these weights, in double precision."""
    g = np.random.default_rng(1)
    x = torch.from_numpy(g.uniform(-1, 1, (2, 3, 75, 91))).float()
    wanted = [[0.320428666, 0.210021467, 0.143506718, 0.391673024],
              [0.320740361, 0.209397437, 0.143618201, 0.391409656]]  # fmt: skip
    np.testing.assert_allclose(groups(network.pool3(x)), wanted, rtol=1e-4)
    pixels = np.random.default_rng(2).integers(0, 256, (1, 3, 8, 10))
    found = network(torch.from_numpy(pixels).double() / 255)
    assert found.shape == (1, 2048)
    wanted = [[0.536018169, 0.505329791, 0.462659023, 0.710998392]]
    np.testing.assert_allclose(groups(found), wanted, rtol=1e-4)


def test_averages_leave_the_padding_out_and_the_last_pool_is_a_maximum(network):
    x = np.random.default_rng(3).standard_normal((1, 1, 4, 5))
    near = [[x[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] for j in range(5)]
            for i in range(4)]  # fmt: skip
    mean, most = ([[f(part) for part in row] for row in near] for f in (np.mean, np.max))
    for name, block in network.named_children():
        if not name.startswith("Mixed") or name in ("Mixed_6a", "Mixed_7a"):
            continue  # these two halve the size
        wanted = most if name == "Mixed_7c" else mean
        np.testing.assert_allclose(block.pool(torch.from_numpy(x))[0, 0], wanted, err_msg=name)


def test_images_are_prepared_as_by_a_plain_loop():
    """Bilinear between pixel centres, edges repeated, no smoothing before."""
    pixels = np.random.default_rng(4).integers(0, 256, (5, 400)) / 255
    noisy = pixels + np.random.default_rng(5).uniform(-0.4, 0.4, pixels.shape) / 255
    found = prepare(torch.from_numpy(noisy)[None, None])  # grey
    assert found.shape == (1, 3, 299, 299)
    assert torch.equal(found[:, 0], found[:, 2])

    def line(values: np.ndarray) -> np.ndarray:
        n, out = len(values), []
        for i in range(299):
            at = max((i + 0.5) * n / 299 - 0.5, 0)
            low = int(at)
            out.append(values[low] + (at - low) * (values[min(low + 1, n - 1)] - values[low]))
        return np.array(out)

    wanted = 2 * line(line(pixels).T).T - 1
    np.testing.assert_allclose(found[0, 1], wanted, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 4, 8, 8), (3, 8, 8)])
def test_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\) or \(B, 3, H, W\); got"):
        prepare(torch.zeros(shape))


@pytest.mark.usefixtures("small")
def test_files_of_both_kinds_give_the_same_features(file, network, tmp_path):
    plain = {k: t for k, t in network.state_dict().items() if not k.endswith(COUNTER)}
    save_file(plain, tmp_path / "w.safetensors")
    torch.save(plain, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    x = torch.rand(18, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = network(x)  # at once; ours in slices of 16
    marks = set()
    for path in (file, tmp_path / "w.safetensors", tmp_path / "old.pth"):
        features = inception_features(path)
        marks.add(features.weights)
        assert f"unrecognised weights {features.weights} of {path.name}" in features.name
        assert "only if the file holds" in features.about
        n = 18 if path == file else 1
        found = features.extract(x[:n])
        assert not found.requires_grad
        np.testing.assert_allclose(found, wanted[:n], atol=1e-4)
    assert len(marks) == 1
    loaded = load_inception(file)
    assert not any(m.training for m in loaded.modules())
    # one number further on, the fingerprint and the features are others
    plain["Mixed_7c.branch_pool.bn.bias"][0] += 1
    save_file(plain, tmp_path / "w.safetensors")
    assert inception_features(tmp_path / "w.safetensors").weights not in marks


def test_the_published_file_is_known_by_its_content(file, monkeypatch):
    assert inception._SHA256.startswith(inception.PUBLISHED[-12:-4])
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    features = inception_features(str(file))
    assert features.name == f"Inception 2015 (published FID), weights {features.weights}"
    assert "at least 10,000 images" in features.about
    assert "only if" not in features.about


class Evil:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_wrong_files_are_refused(network, tmp_path):
    first = {k: t for k, t in network.state_dict().items() if "1a_3x3" in k}
    cases = {
        "google.pth": ({**first, "fc.weight": torch.zeros(1000, 2048)}, "is torchvision's Incep"),
        "aux.pth": ({**first, "AuxLogits.conv0.bn.bias": torch.zeros(9)}, "1000 classes"),
        "part.pth": (first, f"does not fit FIDInception.*{inception.PUBLISHED}"),
        "list.pth": ([torch.zeros(2)], "is no table of tensors"),
        "wrapped.pt": ({"state_dict": first}, "is no table of tensors"),
        "evil.pth": (Evil(tmp_path / "trap"), "cannot be read safely"),
    }
    for name, (content, words) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=words):
            load_inception(tmp_path / name)
    assert not (tmp_path / "trap").exists()
    (tmp_path / "cut.pth").write_bytes((tmp_path / "part.pth").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read safely.*download"):
        load_inception(tmp_path / "cut.pth")
    save_file(first, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="does not fit FIDInception"):
        load_inception(tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"\.pth or \.safetensors file; got .*\.pkl"):
        load_inception(tmp_path / "inception.pkl")
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="no weights at"):
            load_inception(tmp_path / name)


class Zero(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.usefixtures("small")
def test_quality_says_which_features_these_are(file):
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    both = Images(x, torch.zeros(8, dtype=torch.long), torch.arange(8), ("a", "b"), "toy")
    chain = DiffPure(Denoiser(Zero(), VPDiscrete.linear()), DDIM(), t_star=0.1, steps=1)
    model = Defended(chain, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    parts = both[torch.arange(4)], both[torch.arange(4, 8)]
    settings = {"blocks": 2, "steps": 1, "generated": 4}
    known = inception_features(file)
    found = quality(model, *parts, features=known, **settings)
    assert (found.features, found.dimensions, found.about) == (known.name, 2048, known.about)
    assert found.settings["features_weights"] == known.weights != ""
    rows = [known.extract(p.x).double().numpy() for p in parts]
    assert found.fid[0] == pytest.approx(fid(*rows), rel=1e-4)
    words = " ".join(quality_figure(found)._supxlabel.get_text().split())
    for part in (known.name, "which was not checked", "10,000 images in every set",
                 "4 generated", "Fewer images than features", "biased upwards"):  # fmt: skip
        assert part in words
    few = Features("Inception 2015 (published FID)", lambda x: x.mean((2, 3)), "", inception._SAME)
    words = quality_figure(quality(model, *parts, features=few, **settings))._supxlabel.get_text()
    assert "(published FID)" in " ".join(words.split())
    assert "not the" not in words
