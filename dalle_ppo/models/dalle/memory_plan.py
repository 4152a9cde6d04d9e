"""How many images are sampled and decoded at a time, so that caches and activations fit."""

import math
from dataclasses import dataclass

import torch

from dalle_ppo.models.dalle.bart import BartDecoder
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings

# Full-resolution maps that live at once in the VQGAN's last block (5 to 6 were measured for the published
# one, 6.6 for the built-in world's), and vectors over all codes in one step of the sampler.
PIXEL_MAPS = 10
CODE_VECTORS = 10
# On CPUs a cache grows, and not all of the memory it outgrew is reused: 1.6 to 1.85 were measured.
CACHE_GROWTH = 2


@dataclass(frozen=True)
class MemoryPlan:
    """How many images are sampled, and how many decoded, at a time.

    Args:
        cache_bytes: self-attention cache of one image.
        image_bytes: cache and everything else the sampler holds of one image.
        pixel_bytes: what the VQGAN holds of one image.
        batch_size: images sampled together.
        microbatch_size: images decoded together.
        weight_bytes: copies of weights that the sampler lays out differently on a GPU.
        kept_bytes: the stored sets of codes of all images of the batch, which training with top-k keeps.
    """

    cache_bytes: int
    image_bytes: int
    pixel_bytes: int
    batch_size: int
    microbatch_size: int
    weight_bytes: int = 0
    kept_bytes: int = 0

    def __str__(self) -> str:
        sampling = self.batch_size * self.image_bytes + self.weight_bytes
        kept = f", {self.kept_bytes / 1e9:.2f} GB of stored codes" if self.kept_bytes else ""
        return (
            f"cache {self.cache_bytes / 1e6:.1f} MB per image; {self.batch_size} sampled at a time "
            f"({sampling / 1e9:.2f} GB), {self.microbatch_size} decoded at a time "
            f"({self.microbatch_size * self.pixel_bytes / 1e9:.2f} GB){kept}"
        )


def plan_memory(
    decoder: BartDecoder,
    vqgan: VqganDecoder,
    settings: PolicySettings,
    num_images: int,
    budget: float,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> MemoryPlan:
    """Splits a batch so that caches and activations fit.

    Args:
        decoder: the policy's.
        vqgan: what decodes its tokens.
        settings: guidance doubles the cache of all layers but the first; with top-k, the codes that each
            token was drawn from are stored.
        num_images: images to draw.
        budget: bytes on top of the weights; if it is infinite, a batch is sampled whole and decoded
            `images_at_once` at a time.
        dtype: dtype of the caches; by default that of the decoder's weights.
        device: "cpu" or "cuda"; by default where the decoder is.

    Raises:
        ValueError: not even one image fits.
    """
    config, pixels = decoder.config, vqgan.config
    layers = 1 + (config.num_layers - 1) * (2 if settings.guided else 1)
    item = (dtype or decoder.embed_positions.weight.dtype).itemsize
    cross = config.num_layers * 2 * config.num_text_tokens * config.width * item  # one image per caption
    cache = layers * 2 * config.num_image_tokens * config.width * item
    device = device or decoder.embed_positions.weight.device.type
    growth = CACHE_GROWTH if device == "cpu" else 1
    # Laid side by side on a GPU: queries, keys and values of self-attention, and the two of the gate.
    numbers = config.num_layers * config.width * (3 * config.width + 2 * config.glu_width)
    weights = numbers * item if device == "cuda" else 0
    # Copies of the caption's keys and values: on a GPU there is one more, of all branches together.
    copies = 2 if device == "cuda" else 1
    # Twice: when the parts of a batch are joined, there are two copies of the codes.
    kept_codes = 0 if settings.top_k is None else min(settings.top_k, config.num_codes)
    kept = 2 * num_images * config.num_image_tokens * kept_codes * torch.int16.itemsize
    image = int(growth * cache) + copies * cross + CODE_VECTORS * 4 * config.num_codes
    pixel_bytes = PIXEL_MAPS * 4 * pixels.channels[0] * pixels.image_size**2
    batch_size = int(min(num_images, (budget - weights - kept) / image))
    microbatch_size = int(min(num_images, (budget - kept) / pixel_bytes))
    if math.isinf(budget):
        microbatch_size = min(num_images, vqgan.images_at_once)
    if min(batch_size, microbatch_size) < 1:
        needed = max(image + weights, pixel_bytes) + kept
        raise ValueError(
            f"memory_gb is {budget / 1e9:g}; one image needs {needed / 1e9:.3g} on top of the weights"
        )
    return MemoryPlan(cache, image, pixel_bytes, batch_size, microbatch_size, weights, kept)
