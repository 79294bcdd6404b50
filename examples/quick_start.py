"""Defend a classifier, prove the gradient, attack, judge on fresh draws, report."""

import torch

from depure import (
    DDPM,
    PGD,
    Defended,
    DiffPure,
    Linf,
    Threat,
    digits,
    evaluate,
    load_classifier,
    load_denoiser,
    report,
    verify_gradient,
)  # fmt: skip

torch.set_num_threads(1)
images = digits("test").sample(16)
purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=10)
model = Defended(purifier, load_classifier("digits"))
print(verify_gradient(model, images.x[:2], images.y[:2]).verdict)
threat = Threat(Linf(0.15), knows=("forward", "reverse"))
result = evaluate(model, images, PGD(steps=5), threat, draws=20, out="runs/quick_start")
print(f"clean {result.clean.value:.2f}, robust {result.robust.value:.2f}")
print(report(["runs/quick_start"]))
