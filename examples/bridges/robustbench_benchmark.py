"""RobustBench's `benchmark` on a defence; Depure judges the images that it found.

In an environment with Depure and a torchvision that fits its torch:
    pip install robustbench==1.1.1 "setuptools<81"
    pip install git+https://github.com/fra31/auto-attack.git
(robustbench 1.1.1 declares pyautoattack but imports autoattack, which PyPI does not have; it also
needs pkg_resources.) Not beside torchattacks: 3.5.1 overwrites robustbench with a copy of its own.

RobustBench ranks deterministic defences only. `benchmark` always runs version="standard", without
EoT: every attack may break an image by one lucky draw of the noise. Its AutoAttack seeds torch from
the clock, so two runs differ.
"""

from pathlib import Path

import robustbench
import torch
from robustbench.model_zoo.enums import BenchmarkDataset

from depure import DDPM, Defended, DiffPure, Linf, Threat, digits, load_classifier, load_denoiser
from depure.evaluation import judge_file

torch.set_num_threads(1)
torch.manual_seed(0)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=5)
model = Defended(purifier, load_classifier("digits"))
out = Path("runs/bridges")
out.mkdir(parents=True, exist_ok=True)


class Keeping(robustbench.eval.AutoAttack):
    """`benchmark` returns two numbers; this saves the images too."""

    def __init__(self, *args, **settings):  # repeatable and quick: leave this method out
        super().__init__(*args, seed=0, **settings)
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = 10
        self.square.n_queries = 100

    def run_standard_evaluation(self, *args, **settings):
        x_adv = super().run_standard_evaluation(*args, **settings)
        torch.save({"adv_complete": x_adv, "index": images.index}, out / "robustbench.pt")
        return x_adv


robustbench.eval.AutoAttack = Keeping
# Digits in the place of CIFAR-10; leave this line out where RobustBench may load CIFAR-10 itself.
robustbench.data._clean_dataset_loaders[BenchmarkDataset.cifar_10] = lambda *_: (images.x, images.y)
clean, said = robustbench.benchmark(model, n_examples=16, dataset="cifar10", eps=0.2)
result = judge_file(model, images, out / "robustbench.pt", Threat(Linf(0.2)), draws=20)
robust = result.robust
print(f"RobustBench: says {said:.1%} robust (one draw), {clean:.1%} clean")
print(f"  judged on 20 draws: {robust.value:.1%} ({robust.low:.0%} to {robust.high:.0%})")
print(f"without attack, same draws: {result.clean.value:.1%}")
