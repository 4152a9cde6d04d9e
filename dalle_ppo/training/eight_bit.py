"""AdamW with statistics of 8 bits, by bitsandbytes: a quarter of the memory of AdamW's own.

torchao 0.18 has one too. The states of bitsandbytes are plain tensors, which fit into a safetensors file, and
its first step compiles nothing.
"""

import importlib.util
from typing import Any

import torch

from dalle_ppo.config.settings import Config

EIGHT_BIT = "adamw_8bit"
PACKAGE = "bitsandbytes"
SMALLEST = 4096
"""Numbers of the smallest parameter whose statistics have 8 bits; those of others have 32."""
BLOCK = 256
"""Numbers that share a scale."""


def check_optimizers(config: Config, device: torch.device) -> None:
    """Refuses an optimiser of 8 bits where it does not work, before any model is loaded.

    Raises:
        ValueError: the device is a CPU, or the package is missing.
    """
    for section in ("actor", "critic"):
        if getattr(config, section).optimizer != EIGHT_BIT:
            continue
        if device.type != "cuda":
            raise ValueError(
                f"{section}.optimizer is {EIGHT_BIT}, which needs a GPU, and device is {device.type}; "
                f"set {section}.optimizer to adamw"
            )
        if importlib.util.find_spec(PACKAGE) is None:
            raise ValueError(
                f"{section}.optimizer is {EIGHT_BIT}, but the package {PACKAGE} is not installed; run pip "
                f"install {PACKAGE}, or set {section}.optimizer to adamw"
            )


def make_adamw_8bit(groups: list[dict[str, Any]], learning_rate: float, **options) -> torch.optim.Optimizer:
    """AdamW with statistics of 8 bits.

    Args:
        groups: of parameters, with their weight decay.
        learning_rate: for all of them.
        options: `betas` and `eps`, if other than the defaults.

    Source: https://arxiv.org/abs/2110.02861 (block-wise dynamic quantisation).
    """
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=learning_rate, min_8bit_size=SMALLEST, **options)


def state_bytes(parameters: list[torch.nn.Parameter], optimizer: str) -> int:
    """Bytes of the statistics that an optimiser keeps of the parameters that are trained."""
    if optimizer != EIGHT_BIT:
        return sum(2 * p.numel() * p.element_size() for p in parameters)
    large = [p.numel() for p in parameters if p.numel() >= SMALLEST]
    small = [p.numel() for p in parameters if p.numel() < SMALLEST]
    blocks = sum(-(-count // BLOCK) for count in large)
    return 2 * sum(large) + 2 * 4 * blocks + 2 * 4 * sum(small)
