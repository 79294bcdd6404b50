"""Saved adversarial images: read from every format, matched, checked, and judged as usual."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from depure.attacks import PGD
from depure.data import Images
from depure.defences import Defended
from depure.evaluation import evaluate, judge_file, read_saved
from depure.noise import Noise
from depure.purifiers import Purifier
from depure.threat import Linf, Threat

BALL = Linf(0.1)
THREAT = Threat(BALL)


class Jitter(Purifier):
    """Two noise stages, cheap."""

    stages = ("forward", "reverse")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        z = noise.normal("forward", 0, x) + noise.normal("reverse", 0, x)
        return x + 0.2 * z


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 32, generator=torch.Generator().manual_seed(5)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) - 0.5) @ self.w.T


MODEL = Defended(Jitter(), Head())
INDEX = torch.arange(100, 111)


@pytest.fixture
def images():
    x = torch.rand(11, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return Images(x, Head()(x).argmax(1), INDEX, ("a", "b", "c"), "toy")


@pytest.fixture
def x_adv(images):
    return PGD(steps=5, eot=2)(MODEL, images.x, images.y, BALL, Noise.of(9, INDEX))


def save_npz(path, tensors):
    np.savez(path, **{k: v.numpy() for k, v in tensors.items()})


FORMATS = {
    "x_adv.safetensors": lambda path, x: save_file({"x_adv": x}, path),
    "images.safetensors": lambda path, x: save_file({"images": x, "labels": x[:, 0].clone()}, path),
    "x_adv.npz": lambda path, x: save_npz(path, {"x_adv": x}),
    "images.npz": lambda path, x: save_npz(path, {"images": x}),
    "arr_0.npz": lambda path, x: np.savez(path, x.numpy()),
    "plain.npy": lambda path, x: np.save(path, x.numpy()),
    "double.npy": lambda path, x: np.save(path, x.double().numpy()),
    "tensor.pt": lambda path, x: torch.save(x, path),
    "robustbench.pt": lambda path, x: torch.save({"adv_complete": x}, path),
    "torchattacks.pt": lambda path, x: torch.save({"adv_inputs": x, "save_type": "float"}, path),
    "leaf.PTH": lambda path, x: torch.save(x.clone().requires_grad_(), path),
    "old.pt": lambda path, x: torch.save(x, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back(name, images, x_adv, tmp_path):
    FORMATS[name](tmp_path / name, x_adv)
    saved, judged = read_saved(tmp_path / name, images, BALL)
    assert torch.equal(judged.index, images.index)
    assert torch.equal(saved(MODEL, images.x, images.y, BALL, Noise.of(0, INDEX)), x_adv)
    rows = [7, 2, 2]
    some = saved(MODEL, images.x[rows], images.y[rows], BALL, Noise.of(0, rows))
    assert torch.equal(some, x_adv[rows])
    assert repr(saved).startswith(f"Saved(source='{name}', fingerprint='")


@pytest.mark.parametrize(
    "save",
    [
        lambda path, x, index: save_file({"x_adv": x, "index": index}, f"{path}.safetensors"),
        lambda path, x, index: save_npz(f"{path}.npz", {"x_adv": x, "index": index.int()}),
        lambda path, x, index: torch.save({"adv_complete": x, "index": index}, f"{path}.pt"),
    ],
)
def test_an_index_says_which_image(save, images, x_adv, tmp_path):
    """In another order, and of some images only."""
    rows = torch.tensor([8, 0, 5])
    save(tmp_path / "adv", x_adv[rows], INDEX[rows])
    (path,) = tmp_path.iterdir()
    saved, judged = read_saved(path, images, BALL)
    assert judged.index.tolist() == [108, 100, 105]
    assert torch.equal(judged.y, images.y[rows])
    assert torch.equal(
        saved(MODEL, judged.x, judged.y, BALL, Noise.of(0, judged.index)), x_adv[rows]
    )
    with pytest.raises(ValueError, match="holds nothing for 8 of 11 images"):
        saved(MODEL, images.x, images.y, BALL, Noise.of(0, INDEX))


def test_judged_like_an_attack_of_ours(images, x_adv, tmp_path):
    """The same images give the same tables, whoever hands them over; shards do not matter."""
    path = tmp_path / "adv.safetensors"
    save_file({"x_adv": x_adv, "index": INDEX}, path)
    result = judge_file(
        MODEL, images, path, THREAT, draws=6, shard_size=4, chunk=5, out=tmp_path / "run"
    )
    judge = Noise.of(0, INDEX).fold("judge").draws(6)
    for table, x in ((result.shard.clean, images.x), (result.shard.adversarial, x_adv)):
        expected = MODEL(x.repeat_interleave(6, 0), judge).argmax(1).view(11, 6)
        assert torch.equal(table.long(), expected)
    assert torch.equal(result.shard.x_adv, x_adv)
    assert result.robust.value < result.clean.value
    assert result.card["setting"]["attack"]["name"] == "Saved"
    assert result.card["setting"]["attack"]["source"] == "adv.safetensors"
    assert all(c["verdict"] != "fail" for c in result.card["checks"])
    other = judge_file(MODEL, images, path, THREAT, draws=6)
    assert torch.equal(other.shard.adversarial, result.shard.adversarial)
    # Our own attack's shards are such files, and continuing with other images is refused.
    ours = evaluate(MODEL, images, PGD(steps=2), THREAT, draws=6, out=tmp_path / "ours")
    shard = tmp_path / "ours" / "shards" / "00000.safetensors"
    again = judge_file(MODEL, images, shard, THREAT, draws=6)
    assert torch.equal(again.shard.adversarial, ours.shard.adversarial)
    save_file({"x_adv": images.x, "index": INDEX}, path)
    with pytest.raises(ValueError, match=r"attack\.fingerprint"):
        judge_file(MODEL, images, path, THREAT, draws=6, shard_size=4, out=tmp_path / "run")


def test_images_outside_the_ball_are_counted(images, x_adv, tmp_path):
    far = x_adv.clone()
    far[[3, 7], 0, 0, 0] = (images.x[[3, 7], 0, 0, 0] - 0.25).abs()
    np.save(tmp_path / "far.npy", far.numpy())
    message = r"far\.npy: 2 of 11 images leave Linf.* by up to 0\.15 \(size 0\.25\).* index 103:"
    with pytest.raises(ValueError, match=message):
        read_saved(tmp_path / "far.npy", images, BALL)
    np.save(tmp_path / "order.npy", x_adv.flip(0).numpy())
    with pytest.raises(ValueError, match="leave Linf"):
        read_saved(tmp_path / "order.npy", images, BALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x_adv": x[:, :, :3]}, r"shape \(N, 2, 4, 4\).* got \(11, 2, 3, 4\)"),
        (lambda x: {"x_adv": x.permute(0, 2, 3, 1)}, r"transpose them \(0, 3, 1, 2\)"),
        (lambda x: {"x_adv": x[0]}, r"got \(2, 4, 4\)"),
        (lambda x: {"x_adv": x[:0]}, "there are no images"),
        (lambda x: {"x_adv": 2 * x - 1}, r"\[0, 1\]; got min -.*pass \(x \+ 1\) / 2"),
        (lambda x: {"x_adv": 255 * x}, r"\[0, 1\]; got max .*pass x / 255"),
        (lambda x: {"x_adv": (255 * x).to(torch.uint8)}, r"torch\.uint8: save x / 255"),
        (lambda x: {"x_adv": x * torch.nan}, "must be finite"),
        (lambda x: {"x_adv": x[:5]}, "5 images for 11 of the data set, and no index"),
        (
            lambda x: {"pictures": x},
            "none of the entries x_adv, adv_complete, adv_inputs, images, arr_0",
        ),
        (lambda x: {"x_adv": x, "index": INDEX[:5]}, r"index must be 11 whole.* shape \(5,\)"),
        (lambda x: {"x_adv": x, "index": INDEX.float()}, r"index must be.*torch\.float32"),
        (lambda x: {"x_adv": x, "index": INDEX.clamp(max=109)}, "index 109 is there twice"),
        (lambda x: {"x_adv": x, "index": INDEX - 2}, "2 of 11 .* lacks, first 98 .*100 to 110"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, images, x_adv, tmp_path):
    tensors = {k: v.contiguous() for k, v in change(x_adv).items()}
    save_file(tensors, tmp_path / "adv.safetensors")
    save_npz(tmp_path / "adv.npz", tensors)
    torch.save(tensors, tmp_path / "adv.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=message) as caught:
            read_saved(path, images, BALL)
        assert str(path) in str(caught.value)


class Evil:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_run_nothing(images, tmp_path):
    trap = tmp_path / "trap"
    torch.save({"adv_complete": Evil(trap)}, tmp_path / "zip.pt")
    torch.save(Evil(trap), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(trap)))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Evil(trap)))
    np.save(tmp_path / "object.npy", np.array([Evil(trap)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", x_adv=np.array([Evil(trap)], dtype=object))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Evil(trap)))
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Evil(trap)))
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 8
    for path in paths:
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read safely.*safetensors"):
            read_saved(path, images, BALL)
        assert not trap.exists(), path
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists()  # the trap works


def test_a_torch_whose_safe_loading_is_not_safe(images, x_adv, tmp_path, monkeypatch):
    torch.save(x_adv, tmp_path / "adv.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match=r"torch 2\.5\.1\+cpu can be made to run code"):
        read_saved(tmp_path / "adv.pt", images, BALL)
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git1")
    read_saved(tmp_path / "adv.pt", images, BALL)


def test_other_files(images, x_adv, tmp_path):
    (tmp_path / "adv.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are read from \.safetensors, \.npz.* got .*adv\.png"):
        read_saved(tmp_path / "adv.png", images, BALL)
    with pytest.raises(FileNotFoundError, match=r"no file .*adv\.npz"):
        read_saved(tmp_path / "adv.npz", images, BALL)
    np.savez(tmp_path / "cut.npz", x_adv=x_adv.numpy())
    whole = (tmp_path / "cut.npz").read_bytes()
    for size in (0, 10, len(whole) // 2):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read safely"):
            read_saved(tmp_path / "cut.npz", images, BALL)
    torch.save([x_adv], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="x_adv must be an array; got list"):
        read_saved(tmp_path / "list.pt", images, BALL)


def test_one_picture_at_two_places(images, x_adv, tmp_path):
    """Pixels are all that tells images apart: twins need the same answer."""
    x, stored = images.x.clone(), x_adv.clone()
    x[4], stored[4] = x[1], stored[1]
    twins = Images(x, images.y, INDEX, images.classes, "twins")
    np.save(tmp_path / "adv.npy", stored.numpy())
    saved, _ = read_saved(tmp_path / "adv.npy", twins, BALL)
    assert torch.equal(saved(MODEL, x, images.y, BALL, Noise.of(0, INDEX)), stored)
    stored[4] = x[4]
    np.save(tmp_path / "adv.npy", stored.numpy())
    with pytest.raises(ValueError, match="index 104 is in the data set twice"):
        read_saved(tmp_path / "adv.npy", twins, BALL)


def test_an_array_whose_header_is_cut_is_refused_in_a_sentence(images, tmp_path):
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 8, 8".ljust(117) + b"\n"
    path = tmp_path / "cut.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(ValueError, match=r"cut\.npy cannot be read safely .*save the images again"):
        read_saved(path, images, BALL)
