"""What a head on CLIP embeddings says about an image; its settings are in `config/terms/head.py`."""

from torch import Tensor

from dalle_ppo.models.heads.binding import bind_clip
from dalle_ppo.models.heads.nsfw import EmbeddingHead, head_probability, load_head
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Loads the head.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: there is no such head or output, or the head was made for another CLIP.
    """
    head = open_head(options.head, shared, options.column)

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        return RewardResult(head_probability(head, shared.image_embeddings()))

    return reward


def open_head(name: str, shared: Shared, column: int | None = None, source: str = "") -> EmbeddingHead:
    """A head on the run's device, bound to the run's CLIP.

    Args:
        name: a file, or a name that `shared.detector_file` knows.
        shared: hands out CLIP.
        column: which output of a file of directions; None is the head's own score.
        source: where the file can be had, for the error if it is missing.

    Raises:
        ValueError: as in `load`.
    """
    path = shared.detector_file(name)
    if not path.is_file():
        way_out = f"get it from {source} and give its path as head" if source else "give the head's path"
        raise ValueError(f"reward.terms: head is {name}, but there is no such file; {way_out}")
    head = load_head(path, column).to(shared.device)
    bind_clip(head, shared.clip)
    return head
