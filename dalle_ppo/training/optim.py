"""What every training here does alike: AdamW with decay on matrices only, and a cosine schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def make_adamw(
    params: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **options
) -> torch.optim.AdamW:
    """AdamW over the trainable ones of `params`; norms, biases and gains are not decayed.

    Args:
        params: of one or more modules.
        learning_rate: of all of them.
        weight_decay: of matrices, embeddings and convolutions.
        options: `betas` and `eps`, where torch's own are not wanted.
    """
    trained = [p for p in params if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def cosine_learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int = 100) -> float:
    """Linear warm-up to `peak`, then a cosine to zero at `num_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
