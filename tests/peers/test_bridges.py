"""Attack libraries take a `Defended` as it is, and their images can be judged.

What they rely on is tested without them; the libraries themselves are tried where installed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.data import Images
from depure.defences import Defended
from depure.diffusion import Checkpoint, Denoiser
from depure.evaluation import read_saved
from depure.purifiers import DiffPure
from depure.threat import Linf

MakeDenoiser = Callable[..., Denoiser]
BALL = Linf(0.1)
ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "bridges.md").read_text(), re.S)


@pytest.fixture
def model(make_denoiser: MakeDenoiser) -> Defended:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 5)).requires_grad_(False)
    purifier = DiffPure(make_denoiser(dtype=torch.float32), steps=2, backprop=Checkpoint(0))
    return Defended(purifier, head)


@pytest.fixture
def clean() -> Images:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0] = torch.arange(8.0) % 2  # pixels at the very ends of the range
    return Images(x, torch.arange(4), torch.arange(20, 24), tuple("abcde"), "toy")


@pytest.fixture(autouse=True)
def untouched(model: Defended) -> Any:
    """Whatever a library does, weights, modes and gradients of the defence stay as they were."""
    before = copy.deepcopy(model.state_dict())
    yield
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def judged(path: Path, clean: Images) -> Tensor:
    """The images of a file, read as `depure evaluate --adversarial` reads them."""
    saved, images = read_saved(path, clean, BALL)
    assert torch.equal(images.index, clean.index)
    x_adv = saved(None, images.x, images.y, BALL, None)  # type: ignore[arg-type]
    assert BALL.contains(x_adv, clean.x).all()
    return x_adv


def moved(path: Path, clean: Images) -> bool:
    """Whether the file's images fit, and are not those without attack."""
    return not torch.equal(judged(path, clean), clean.x)


# What the libraries rely on


def test_an_ordinary_module(model: Defended, clean: Images) -> None:
    assert model.eval() is model
    assert model.train(False) is model
    assert model.to("cpu") is model
    assert next(model.parameters()).device == clean.x.device
    model.zero_grad()
    logits = model(clean.x)
    assert logits.shape == (4, 5)
    assert not logits.requires_grad
    assert not torch.allclose(logits.softmax(1), logits)
    assert model(clean.x[:1]).shape == (1, 5)


def test_gradient_modes(model: Defended, clean: Images) -> None:
    """foolbox enables gradients by the input, AutoAttack inside no_grad."""
    x = clean.x.clone().requires_grad_()
    with torch.no_grad():
        assert not model(x).requires_grad
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert grad.isfinite().all()
    assert (grad.flatten(1).norm(dim=1) > 0).all()
    with torch.inference_mode():
        assert model(clean.x).shape == (4, 5)


def test_one_gradient_a_class(model: Defended, clean: Images) -> None:
    """DeepFool, FAB and JSMA go back through one graph once for each class."""
    x = clean.x.clone().requires_grad_()
    logits = model(x)
    rows = [torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for z in logits.unbind(1)]
    (total,) = torch.autograd.grad(logits.sum(), x)
    torch.testing.assert_close(torch.stack(rows).sum(0), total)


def test_a_loop_that_accumulates(model: Defended, clean: Images) -> None:
    x = clean.x.clone().requires_grad_()
    for _ in range(2):
        functional.cross_entropy(model(x), clean.y).backward()
    assert x.grad is not None
    assert x.grad.norm() > 0


def test_a_hair_beyond_the_range(model: Defended, clean: Images) -> None:
    """Projections in float32 end up there."""
    assert model(clean.x * (1 + 2e-6) - 1e-6).shape == (4, 5)


def test_hooks_copies_and_precision(model: Defended, clean: Images) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    model(clean.x)
    hook.remove()
    assert calls == [4]
    torch.manual_seed(5)
    before = model(clean.x)
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    assert torch.equal(twin(clean.x), before)
    x = clean.x.bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(twin.bfloat16()(x).sum(), x)
    assert grad.dtype == torch.bfloat16
    assert grad.isfinite().all()


def test_the_wrappers_of_the_page(model: Defended, clean: Images) -> None:
    """docs/bridges.md: one for attacks that leave [0, 1], one for those that want one answer."""
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/bridges.md", "exec"), names)
    clamped, fixed = names["Clamped"](model).eval(), names["Fixed"](model).eval()
    x = clean.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(clamped(x).sum(), x)
    assert (grad != 0).all()  # also where a pixel is 0 or 1
    assert clamped(3 * clean.x - 1).shape == (4, 5)
    answer = fixed(clean.x)
    assert torch.equal(fixed(clean.x), answer)
    torch.testing.assert_close(fixed(clean.x[[2]]), answer[[2]])


# The libraries


def test_foolbox(model: Defended, clean: Images, tmp_path: Path) -> None:
    foolbox = pytest.importorskip("foolbox")
    plain = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    averaged = foolbox.models.ExpectationOverTransformationWrapper(plain, n_steps=2)
    for target in (plain, averaged):
        attack = foolbox.attacks.LinfPGD(steps=2)
        _, x_adv, success = attack(target, clean.x, clean.y, epsilons=BALL.eps)
        assert success.shape == (4,)
        np.savez(tmp_path / "adv.npz", x_adv=x_adv.numpy())
        assert moved(tmp_path / "adv.npz", clean)
    _, x_adv, _ = foolbox.attacks.LinfDeepFoolAttack(steps=2)(
        plain, clean.x, clean.y, epsilons=BALL.eps
    )
    np.savez(tmp_path / "adv.npz", x_adv=x_adv.numpy())
    judged(tmp_path / "adv.npz", clean)


def test_art(model: Defended, clean: Images, tmp_path: Path) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    loss = nn.CrossEntropyLoss()
    target = PyTorchClassifier(model, loss, (3, 8, 8), 5, clip_values=(0, 1), device_type="cpu")
    attack = evasion.ProjectedGradientDescent(
        target, eps=BALL.eps, eps_step=0.05, max_iter=2, num_random_init=1, verbose=False
    )
    x_adv = attack.generate(clean.x.numpy(), clean.y.numpy())
    np.savez(tmp_path / "adv.npz", x_adv=x_adv)
    assert moved(tmp_path / "adv.npz", clean)
    assert target.class_gradient(clean.x.numpy()).shape == (4, 5, 3, 8, 8)
    with pytest.raises(ValueError, match="stays in eval mode"):
        target.predict(clean.x.numpy(), training_mode=True)


def test_torchattacks(model: Defended, clean: Images, tmp_path: Path) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.EOTPGD(model, eps=BALL.eps, alpha=0.05, steps=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(clean.x, clean.y), 3)
    attack.save(loader, tmp_path / "adv.pt", verbose=False)
    assert moved(tmp_path / "adv.pt", clean)
    assert attack(clean.x, clean.y).shape == clean.x.shape
    torch.save(torchattacks.APGD(model, eps=BALL.eps, steps=2)(clean.x, clean.y), tmp_path / "a.pt")
    judged(tmp_path / "a.pt", clean)


def test_pyautoattack(model: Defended, clean: Images, tmp_path: Path) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    attacks = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    adversary = pyautoattack.AutoAttack(model, attacks=attacks, eps=BALL.eps, version="custom")
    for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        part.n_iter, part.n_restarts = 2, 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 1
    adversary.square.n_queries = 2
    y = model(clean.x).argmax(1)  # so that there is something to attack
    x_adv, _ = adversary.run_standard_evaluation(clean.x, y, batch_size=3)
    torch.save({"adv_complete": x_adv}, tmp_path / "adv.pt")
    judged(tmp_path / "adv.pt", clean)


def test_adv_lib(model: Defended, clean: Images, tmp_path: Path) -> None:
    attacks = pytest.importorskip("adv_lib.attacks")
    norm = float("inf")
    x_adv = attacks.apgd(model, clean.x, clean.y, eps=BALL.eps, norm=norm, n_iter=2, eot_iter=2)
    torch.save({"adv_inputs": x_adv}, tmp_path / "adv.pt")
    assert moved(tmp_path / "adv.pt", clean)


def test_robustbench(model: Defended, clean: Images) -> None:
    utils = pytest.importorskip("robustbench.utils")
    assert 0 <= utils.clean_accuracy(model, clean.x, clean.y) <= 1
