"""Draws many images of one caption within a budget of memory."""

import torch
from torch import Tensor

from dalle_ppo.models.dalle.bart import BartDecoder
from dalle_ppo.models.dalle.sampling import noise_keys
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.memory_plan import MemoryPlan
from dalle_ppo.policy.rollout import FrozenParts, encode_captions, sample_in_parts


@torch.no_grad()
def draw_images(
    decoder: BartDecoder,
    parts: FrozenParts,
    caption: str,
    keys: Tensor,
    settings: PolicySettings,
    plan: MemoryPlan,
) -> tuple[Tensor, bool]:
    """Draws one caption's images.

    Args:
        decoder: policy or reference.
        parts: tokenizer, text encoder, VQGAN.
        caption: any text; one that is too long is cut and keeps its end token.
        keys: noise of each image, int32 [N, 2]; how the images are split changes none of it.
        settings: of the policy.
        plan: how they are split.

    Returns:
        uint8 [N, 3, H, W] on the CPU, and whether the caption was cut.
    """
    prompts, num_truncated = encode_captions(parts, [caption], settings)
    samples = sample_in_parts(decoder, prompts, keys.to(parts.device), settings, plan.batch_size)
    images = parts.vqgan.decode_uint8(samples.tokens, plan.microbatch_size)
    return images.cpu(), num_truncated > 0


def image_keys(seed: int, caption_id: str, num_images: int) -> Tensor:
    """Noise of the images of a caption, as every earlier picture of that seed had it: int32 [N, 2]."""
    return noise_keys(seed, "generate", 0, [caption_id] * num_images, range(num_images))
