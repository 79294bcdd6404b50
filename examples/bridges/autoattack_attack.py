"""AutoAttack's APGD-CE and APGD-DLR; `depure evaluate --adversarial` judges the images.

In an environment with Depure:  pip install pyautoattack==0.2.0   (no torchvision needed)

This is the package of AutoAttack's authors. For a random defence they ask for version="rand": the
two attacks below with 100 steps and EoT 20, cut here to 10 and 5 to be quick. EoT averages the
gradient only; loss, best point and success are those of the last draw, and an image that failed
one draw, even unattacked, counts as broken. Images it did not break come back unattacked.
"""

import subprocess
import sys
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack

from depure import DDPM, Defended, DiffPure, digits, load_classifier, load_denoiser

torch.set_num_threads(1)
torch.manual_seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))

adversary = AutoAttack(
    model, attacks=["apgd-ce", "apgd-dlr"], eps=0.2, seed=0, version="custom", device="cpu"
)
adversary.apgd = APGDAttack(model, n_iter=10, eot_iter=5, eps=0.2, device="cpu")
x_adv, labels = adversary.run_standard_evaluation(images.x, images.y, batch_size=16)
print(f"AutoAttack: says {(labels == images.y).float().mean():.1%} robust")

out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)
torch.save({"adv_complete": x_adv, "index": images.index}, out / "autoattack.pt")
command = (
    f"evaluate --adversarial {out}/autoattack.pt --images 16 --steps 5 --eps 0.2 "
    f"--out {out}/autoattack"
)
print("$ depure", command, flush=True)
subprocess.run([sys.executable, "-m", "depure", *command.split()], check=True)
