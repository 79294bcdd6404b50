"""Train a classifier: a short loop to read in one sitting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depure.data.images import Images
from depure.training.loop import Progress, check_positive, device_of, finite, seeded, warm_cosine

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``(x, generator) -> x``: changes a batch of images, drawing only from the generator."""


@dataclass(frozen=True)
class Shift:
    """Moves each image by up to ``pixels`` in both directions and fills with black.

    Raises:
        ValueError: ``pixels`` is negative.
    """

    pixels: int = 1

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"pixels must not be negative; got {self.pixels}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Shifted images, shaped as ``x`` ``(B, C, H, W)``."""
        (b, _, h, w), p = x.shape, self.pixels
        down, right = torch.randint(2 * p + 1, (2, b, 1), generator=generator).to(x.device)
        rows = (torch.arange(h, device=x.device) + down).unsqueeze(2)
        columns = (torch.arange(w, device=x.device) + right).unsqueeze(1)
        image = torch.arange(b, device=x.device).view(b, 1, 1)
        return F.pad(x, (p, p, p, p))[image, :, rows, columns].permute(0, 3, 1, 2)


def train_classifier(
    model: nn.Module,
    images: Images,
    epochs: int,
    *,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 1e-2,
    augment: Augment | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train ``model`` in place with cross-entropy and leave it in eval mode.

    AdamW; the learning rate climbs, then falls along a cosine to zero. Every image is seen once
    an epoch.

    Args:
        model: images ``(B, C, H, W)`` in ``[0, 1]`` to logits; batches go to its device.
        images: the training set.
        epochs: passes over it.
        augment: changes each batch, such as :class:`Shift`.
        seed: fixes the order, the augmentation and the dropout; torch's generator stays untouched.
        progress: called after every update with its number, their total, and the loss.

    Raises:
        ValueError: a setting is not above zero, or there are no images.
        FloatingPointError: the loss is not finite.
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr, images=len(images))
    device = device_of(model)
    total = epochs * -(-len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    model.train()
    step = 0
    with seeded(seed, model) as generator:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in torch.split(order, batch_size):
                x, y = images.x[rows].to(device), images.y[rows].to(device)
                loss = F.cross_entropy(model(augment(x, generator) if augment else x), y)
                step += 1
                value = finite(loss, step)
                optimizer.param_groups[0]["lr"] = lr * warm_cosine(step - 1, total)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                if progress:
                    progress(step, total, value)
    model.eval()


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], images: Images, batch_size: int = 256) -> float:
    """The share of ``images`` that ``model`` puts in their class, in ``[0, 1]``.

    The model is used in the mode it is in.

    Raises:
        ValueError: there are no images.
    """
    check_positive(images=len(images), batch_size=batch_size)
    device = device_of(model) if isinstance(model, nn.Module) else images.x.device
    right = 0
    for rows in torch.split(torch.arange(len(images)), batch_size):
        logits = model(images.x[rows].to(device))
        right += int((logits.argmax(1).cpu() == images.y[rows].cpu()).sum())
    return right / len(images)
