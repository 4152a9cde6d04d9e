"""Trains the built-in world's VQGAN: 64-pixel scenes to 8 x 8 codes and back."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.making.scene_tokens import SceneTokens, image_tokens
from dalle_ppo.iconworld.making.training import image_tensor, train_loop
from dalle_ppo.iconworld.scenes import Scene, draw_batch
from dalle_ppo.models.dalle.presets import VqganConfig
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder, nearest_codes

TAG_SHARES = (0.5, 0.25, 0.25)


def sample_scenes(rng: np.random.Generator, num: int, split: str = "train") -> list[Scene]:
    """Scenes of captions drawn in the world's default mix."""
    tags = rng.choice(TAGS, size=num, p=TAG_SHARES)
    return [sample_scene(rng, sample_caption(rng, tag, split)) for tag in tags]


class EmaCodebook(nn.Module):
    """Codebook updated with exponential moving averages of the features that chose each code.

    A code that is no longer chosen is reset to a random feature of the batch.

    Source: https://arxiv.org/abs/1711.00937, appendix A.1.
    """

    def __init__(self, decoder: VqganDecoder, decay: float = 0.98):
        super().__init__()
        self.codes = decoder.embedding.weight
        self.codes.requires_grad_(False)
        self.decay = decay
        self.counts = torch.zeros(len(self.codes))
        self.sums = torch.zeros_like(self.codes)

    @torch.no_grad()
    def update(self, features: Tensor, chosen: Tensor, generator: torch.Generator) -> None:
        """Moves the codes towards `features` [M, E], which chose the codes `chosen` [M]."""
        counts = torch.bincount(chosen, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self.codes).index_add_(0, chosen, features)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        dead = (self.counts < 0.01).nonzero()[:, 0]
        picks = torch.randint(len(features), (len(dead),), generator=generator)
        self.codes[dead] = features[picks]
        self.sums[dead] = features[picks]
        self.counts[dead] = 1.0


def edge_loss(images: Tensor, targets: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical pixel differences: keeps outlines sharp."""
    difference = images - targets
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


def drawing_loss(images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Distance of decoded images [N, 3, H, W] from `targets`, and numbers for the progress bar."""
    l1, mse = (images - targets).abs().mean(), F.mse_loss(images, targets)
    numbers = {"psnr": float(-10 * mse.detach().log10()), "l1": float(l1.detach())}
    return l1 + edge_loss(images, targets) + 2 * mse, numbers


def framed_loss(images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
    """`drawing_loss` plus separate terms for the frame of outermost pixels and its corners.

    A corner is one pixel among thousands, and no other pixel sees the same padding: in the mean over all
    pixels it counts so little that it stays discoloured.
    """
    loss, numbers = drawing_loss(images, targets)
    away = (images - targets).abs()
    frame = torch.cat([away[..., 0, :], away[..., -1, :], away[..., 0], away[..., -1]], dim=-1).mean()
    corners = away[..., [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    return loss + frame + corners / 4, numbers | {"frame": float(frame.detach())}


def train_vqgan(config: VqganConfig, seed: int, num_steps: int, batch_size: int = 32):
    """Trains encoder, codebook and decoder together.

    Args:
        config: sizes.
        seed: seed of weights and data.
        num_steps: optimiser steps.
        batch_size: scenes per step.

    Returns:
        (VqganEncoder, VqganDecoder), in eval mode.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    generator = torch.Generator().manual_seed(seed)
    encoder = VqganEncoder(config)
    decoder = VqganDecoder(config)
    codebook = EmaCodebook(decoder)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        targets = image_tensor(draw_batch(sample_scenes(rng, batch_size)))
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder(targets)
        flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)
        chosen = nearest_codes(flat.detach(), codebook.codes)
        quantised = F.embedding(chosen, codebook.codes)
        commitment = F.mse_loss(flat, quantised)
        codebook.update(flat.detach(), chosen, generator)
        straight_through = flat + (quantised - flat).detach()
        grid = straight_through.view(features.shape[0], *features.shape[2:], -1).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            images = decoder.from_features(grid).float()
        loss, numbers = drawing_loss(images, targets)
        if step % 20 == 0:
            numbers["codes used"] = float((codebook.counts > 0.02).sum())
        return loss + 0.25 * commitment, numbers

    for _ in train_loop("VQGAN", [encoder, decoder], num_steps, 1e-3, loss_of_step):
        pass
    return encoder.eval(), decoder.eval()


def train_decoder(
    encoder: VqganEncoder,
    decoder: VqganDecoder,
    seed: int,
    num_steps: int,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, float]]],
    batch_size: int = 32,
) -> None:
    """Trains the decoder in place with a fixed codebook, half of the time on composed scenes.

    The DALL·E learns scenes composed from the codes of their icons, which the encoder never produces. Group
    norms and attention make the decoder depend on the whole image, and a decoder that knows only the
    encoder's codes may draw composed scenes on a background of the wrong colour.

    Args:
        encoder: trained together with `decoder`; unchanged.
        decoder: trained in place, except for its codebook.
        seed: seed of the data.
        num_steps: optimiser steps.
        loss: `drawing_loss` or `framed_loss`, called with decoded images and targets.
        batch_size: scenes per step.
    """
    rng = np.random.default_rng([seed, 2])
    compose = SceneTokens(encoder, decoder)
    half = batch_size // 2

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = sample_scenes(rng, batch_size)
        images = draw_batch(scenes)
        encoded = image_tokens(encoder, decoder, images[:half])
        tokens = torch.cat([encoded, compose(scenes[half:])])
        grid = decoder.embedding(tokens).unflatten(1, (decoder.config.grid_size,) * 2).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decoder.from_features(grid.contiguous()).float()
        return loss(decoded, image_tensor(images))

    for _ in train_loop("VQGAN's decoder", [decoder], num_steps, 4e-4, loss_of_step):
        pass
