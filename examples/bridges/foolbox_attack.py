"""foolbox's PGD, plain and with its EoT wrapper; Depure judges the images on fresh draws.

In an environment with Depure:  pip install foolbox==3.3.4   (no torchvision needed)

foolbox returns PGD's last iterate and tries it on one draw: a noisy figure, but no lucky choice.
Its EoT wrapper averages logits, not losses, and its figure is then that of the mean logits. Its
decision-based attacks (HopSkipJump, Boundary) expect the same answer twice and stop with an
error: see docs/bridges.md.
"""

from pathlib import Path

import foolbox
import numpy as np
import torch

from depure import DDPM, Defended, DiffPure, Linf, Threat, digits, load_classifier, load_denoiser
from depure.evaluation import judge_file

torch.set_num_threads(1)
torch.manual_seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))

plain = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
averaged = foolbox.models.ExpectationOverTransformationWrapper(plain, n_steps=5)
out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)
for name, target in (("PGD-20", plain), ("PGD-20, EoT 5", averaged)):
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.125, steps=20)
    _, x_adv, success = attack(target, images.x, images.y, epsilons=0.2)
    np.savez(out / "foolbox.npz", x_adv=x_adv.numpy(), index=images.index.numpy())
    result = judge_file(model, images, out / "foolbox.npz", Threat(Linf(0.2)), draws=20)
    robust = result.robust
    print(f"foolbox {name}: says {1 - success.float().mean():.1%} robust")
    print(f"  judged on 20 draws: {robust.value:.1%} ({robust.low:.0%} to {robust.high:.0%})")
print(f"without attack, same draws: {result.clean.value:.1%}")
