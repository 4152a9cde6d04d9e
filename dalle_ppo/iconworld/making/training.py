"""Helpers for training the parts of the built-in world: images, training loop, saving."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.tensor_files import save_tensors
from dalle_ppo.training.optim import cosine_learning_rate, make_adamw, set_learning_rate


def image_tensor(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in 0..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.to(torch.float32).div_(255).contiguous()


def train_loop(
    name: str,
    modules: list[nn.Module],
    num_steps: int,
    learning_rate: float,
    loss_of_step: Callable[[int], tuple[Tensor, dict[str, float]]],
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> Iterator[int]:
    """Trains with AdamW, a cosine schedule and clipped gradients; yields each finished step.

    Args:
        name: shown in the progress bar.
        modules: modules to train.
        num_steps: optimiser steps.
        learning_rate: peak learning rate.
        loss_of_step: maps a step number to (loss, numbers for the progress bar).
        weight_decay: weight decay of AdamW, on matrices only.
        betas: betas of AdamW.
    """
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = make_adamw(params, learning_rate, weight_decay, betas=betas)
    bar = tqdm(range(num_steps), desc=name, mininterval=2.0)
    for step in bar:
        set_learning_rate(optimizer, cosine_learning_rate(step, num_steps, learning_rate))
        loss, numbers = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix({key: f"{value:.4g}" for key, value in numbers.items()})
        yield step


def save_half(module: nn.Module, path: Path) -> None:
    """Writes a module's weights as float16 safetensors: half the download, loaded back as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().contiguous() for name, value in module.state_dict().items()}
    # A build takes the file's presence for the end of a stage.
    atomic_write(path, lambda new: save_tensors(tensors, new))
