"""ART's PGD with restarts; Depure judges the images on fresh draws.

In an environment with Depure:  pip install adversarial-robustness-toolbox==1.20.1
(no torchvision needed; the extra [pytorch] would ask for it, and is not)

ART has no EoT over a defence's own noise: its expectation_over_transformation package draws image
transformations. Of several starts it keeps the last one that fooled a single draw. Its random
starts come from numpy's generator.
"""

from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from art.utils import compute_success

from depure import DDPM, Defended, DiffPure, Linf, Threat, digits, load_classifier, load_denoiser
from depure.evaluation import judge_file

torch.set_num_threads(1)
torch.manual_seed(0)
np.random.seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))

loss = torch.nn.CrossEntropyLoss()
target = PyTorchClassifier(model, loss, (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
attack = ProjectedGradientDescent(
    target, eps=0.2, eps_step=0.025, max_iter=20, num_random_init=4, verbose=False
)
x, y = images.x.numpy(), np.eye(10)[images.y.numpy()]
x_adv = attack.generate(x, y)
success = compute_success(target, x, y, x_adv)

out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)
np.savez(out / "art.npz", x_adv=x_adv, index=images.index.numpy())
result = judge_file(model, images, out / "art.npz", Threat(Linf(0.2)), draws=20)
robust = result.robust
print(f"ART PGD-20, 4 starts: says {1 - success:.1%} robust (one draw)")
print(f"  judged on 20 draws: {robust.value:.1%} ({robust.low:.0%} to {robust.high:.0%})")
print(f"without attack, same draws: {result.clean.value:.1%}")
