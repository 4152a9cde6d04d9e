"""Supervised training of the policy's networks on pairs of captions and image tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.base.checks import at_least_one
from dalle_ppo.models.dalle.bart import PAD_TOKEN, at_least_float32
from dalle_ppo.training.optim import cosine_learning_rate, make_adamw, set_learning_rate


@dataclass(frozen=True)
class TokenPairs:
    """P captions and their images, both as tokens.

    Args:
        text_tokens: int64 [P, 64].
        image_tokens: int64 [P, T].
    """

    text_tokens: Tensor
    image_tokens: Tensor

    def __len__(self) -> int:
        return len(self.text_tokens)


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of supervised training.

    Args:
        num_steps: optimiser steps.
        batch_size: pairs per step.
        learning_rate: peak; linear warm-up, then cosine to zero.
        warmup_steps: warm-up steps of the learning rate.
        caption_dropout: share of captions replaced by the empty one; guidance needs the model to know it.
        weight_decay: AdamW's weight decay, on matrices.
        max_grad_norm: gradients are clipped to this norm.
        train_encoder: also train the text encoder.
        bfloat16: run matrix products in bfloat16 (autocast).
        seed: seed of the order of the data and of the caption dropout.
    """

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    caption_dropout: float = 0.12
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    train_encoder: bool = True
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "", "num_steps", "batch_size")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(
                f"caption_dropout is {self.caption_dropout}; it must be in [0, 1): "
                "the share of captions dropped"
            )


def next_token_loss(
    encoder: nn.Module, decoder: nn.Module, text_tokens: Tensor, image_tokens: Tensor
) -> Tensor:
    """Mean cross-entropy of image tokens given captions, in nats per token; a scalar.

    Args:
        encoder: text encoder.
        decoder: image-token decoder.
        text_tokens: int64 [B, 64].
        image_tokens: int64 [B, T].
    """
    hidden = decoder(image_tokens, decoder.cross_states(encoder(text_tokens)))
    logits = at_least_float32(decoder.head(hidden))
    return F.cross_entropy(logits.flatten(0, 1), image_tokens.flatten())


def random_batches(lengths: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of each batch, endlessly; no row repeats before all have been used.

    Captions more than twice as long as the median get their own batches: every caption is read up to the
    longest in its batch.

    Args:
        lengths: tokens of each caption, int64 [P].
        batch_size: rows per batch, B.
        generator: draws the order.

    Returns:
        int64 [B] each.
    """
    is_long = lengths > 2 * lengths.median()
    waiting = [torch.empty(0, dtype=torch.long)] * 2
    while True:
        while max(len(rows) for rows in waiting) < batch_size:
            order = torch.randperm(len(lengths), generator=generator)
            new = order[~is_long[order]], order[is_long[order]]
            waiting = [torch.cat(rows) for rows in zip(waiting, new, strict=True)]
        full = [len(rows) if len(rows) >= batch_size else 0 for rows in waiting]
        kind = int(torch.rand(1, generator=generator) * sum(full) < full[1])
        yield waiting[kind][:batch_size]
        waiting[kind] = waiting[kind][batch_size:]


def train_supervised(
    encoder: nn.Module,
    decoder: nn.Module,
    pairs: TokenPairs,
    unconditional_tokens: Tensor,
    config: SupervisedConfig,
) -> Iterator[dict[str, float]]:
    """Trains in place; yields the numbers of each step: `loss` and `learning_rate`.

    Args:
        encoder: text encoder; trained if the config says so.
        decoder: image-token decoder.
        pairs: the data, visited repeatedly, in a seeded random order.
        unconditional_tokens: int64 [64], what a dropped caption becomes.
        config: settings.

    Raises:
        ValueError: there are no pairs, or a loss is not finite.
    """
    if len(pairs) == 0:
        raise ValueError("there are no pairs of captions and images to train on; give at least one")
    device = decoder.embed_positions.weight.device
    generator = torch.Generator().manual_seed(config.seed)
    encoder.requires_grad_(config.train_encoder)
    modules = [encoder, decoder] if config.train_encoder else [decoder]
    params = [p for module in modules for p in module.parameters()]
    optimizer = make_adamw(params, config.learning_rate, config.weight_decay, betas=(0.9, 0.98))
    batches = random_batches((pairs.text_tokens != PAD_TOKEN).sum(dim=1), config.batch_size, generator)
    for step, rows in zip(range(config.num_steps), batches, strict=False):
        text, image = pairs.text_tokens[rows].to(device), pairs.image_tokens[rows].to(device)
        dropped = torch.rand(len(rows), generator=generator) < config.caption_dropout
        text = torch.where(dropped.to(device)[:, None], unconditional_tokens.to(device), text)
        learning_rate = cosine_learning_rate(
            step, config.num_steps, config.learning_rate, config.warmup_steps
        )
        set_learning_rate(optimizer, learning_rate)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            mean_loss = next_token_loss(encoder, decoder, text, image)
        mean_loss.backward()
        loss = float(mean_loss.detach())
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} at step {step}; lower learning_rate")
        nn.utils.clip_grad_norm_(params, config.max_grad_norm)
        optimizer.step()
        yield {"loss": loss, "learning_rate": learning_rate}
