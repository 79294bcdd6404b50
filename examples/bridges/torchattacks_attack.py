"""torchattacks' EOTPGD and APGD, saved by its own `save`; Depure judges the images.

In an environment with Depure:  pip install --no-deps torchattacks==3.5.1
It declares torchvision and an old requests, and uses neither of them when attacking; without
--no-deps pip may replace the installed torch by the one that its newest torchvision asks for.
Its wheel also holds a package `robustbench`, an old copy: do not install it beside RobustBench.

EOTPGD returns the last iterate. APGD keeps, of all iterates, one that fooled a single draw (the
last of eot_iter); images that it did not break come back unattacked. What `save` reports is one
more draw. Attacks that step outside [0, 1] (NIFGSM, SPSA, ...) are refused: see docs/bridges.md.
"""

from pathlib import Path

import torch
import torchattacks
from torch.utils.data import DataLoader, TensorDataset

from depure import DDPM, Defended, DiffPure, Linf, Threat, digits, load_classifier, load_denoiser
from depure.evaluation import judge_file

torch.set_num_threads(1)
torch.manual_seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))

loader = DataLoader(TensorDataset(images.x, images.y), batch_size=16)
out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)
for attack in (
    torchattacks.EOTPGD(model, eps=0.2, alpha=0.025, steps=20, eot_iter=5),
    torchattacks.APGD(model, eps=0.2, steps=20, eot_iter=5),
):
    path = out / f"torchattacks-{attack.attack}.pt"
    said, _, _ = attack.save(loader, path, verbose=False, return_verbose=True)
    result = judge_file(model, images, path, Threat(Linf(0.2)), draws=20)
    robust = result.robust
    print(f"torchattacks {attack.attack}: says {said:.1f}% robust (one draw)")
    print(f"  judged on 20 draws: {robust.value:.1%} ({robust.low:.0%} to {robust.high:.0%})")
print(f"without attack, same draws: {result.clean.value:.1%}")
