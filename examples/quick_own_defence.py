"""Bring your own: any purifier and any classifier; third-party attacks take it as it is."""

import torch
from torch import nn

from depure import PGD, Defended, Linf, Threat, digits, evaluate, load_classifier
from depure.noise import Noise
from depure.purifiers import Purifier


class Jitter(Purifier):
    """Adds noise and pushes pixels towards black or white: no diffusion at all."""

    stages = ("jitter",)

    def purify(self, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        z = noise.normal("jitter", 0, x)
        return torch.sigmoid(8 * (x + 0.2 * z - 0.5))


torch.set_num_threads(1)
images = digits("test").sample(32)
model = Defended(Jitter(), load_classifier("digits"))

for knows in ((), ("jitter",)):
    result = evaluate(model, images, PGD(steps=10), Threat(Linf(0.1), knows), check_images=0)
    print(
        f"attacker knows {knows}: clean {result.clean.value:.2f}, robust {result.robust.value:.2f}"
    )

# An ordinary module: without `noise`, fresh numbers come from torch's own generator.
x = images.x.clone().requires_grad_()
nn.functional.cross_entropy(model(x), images.y).backward()
print(f"one plain gradient step from any attack library: |grad| = {x.grad.norm():.3f}")
