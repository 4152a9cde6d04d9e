"""The cosine between image and caption in CLIP's space."""

from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Loads CLIP.

    Args:
        options: the term's settings; it has none.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: CLIP cannot be loaded.
    """
    _ = shared.clip  # loaded now, so that errors show before training starts

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        similarity = (shared.image_embeddings() * shared.text_embeddings()).sum(dim=1)
        return RewardResult(similarity, {"clip_similarity": similarity})

    return reward
