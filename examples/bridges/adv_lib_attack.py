"""adv-lib's APGD; Depure judges the images on fresh draws.

In an environment with Depure, with a torchvision that fits its torch (adv-lib imports it):
    pip install adv-lib==0.2.8
Its dependency visdom 0.2.4 is built from source and needs an older setuptools for that:
    echo 'setuptools<81' > old.txt; PIP_CONSTRAINT=old.txt pip install visdom==0.2.4

eot_iter averages gradients; an image is broken if the last of the draws was fooled at any iterate,
and images that were not broken come back unattacked. With best_loss=True the argument n_iter is
not passed on (always 100 iterations). adv-lib's `run_attack` needs CUDA, so its success figure,
one more draw, is computed here.
"""

from pathlib import Path

import numpy as np
import torch
from adv_lib.attacks import apgd
from adv_lib.utils import predict_inputs

from depure import DDPM, Defended, DiffPure, Linf, Threat, digits, load_classifier, load_denoiser
from depure.evaluation import judge_file

torch.set_num_threads(1)
torch.manual_seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))

x_adv = apgd(model, images.x, images.y, eps=0.2, norm=float("inf"), n_iter=20, eot_iter=5)
_, _, labels = predict_inputs(model, x_adv)
said = (labels == images.y).float().mean()

out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)
np.savez(out / "adv_lib.npz", x_adv=x_adv.numpy(), index=images.index.numpy())
result = judge_file(model, images, out / "adv_lib.npz", Threat(Linf(0.2)), draws=20)
robust = result.robust
print(f"adv-lib APGD-20, EoT 5: says {said:.1%} robust (one draw)")
print(f"  judged on 20 draws: {robust.value:.1%} ({robust.low:.0%} to {robust.high:.0%})")
print(f"without attack, same draws: {result.clean.value:.1%}")
