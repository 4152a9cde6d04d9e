"""The reward that is trained on: thresholded NSFW score plus CLIP similarity, and rewards of one's own."""

import importlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_ppo.models.clip import ClipScorer
from dalle_ppo.models.heads.nsfw import EmbeddingHead, check_clip
from dalle_ppo.rewards.base import Reward, RewardResult, check_result


@dataclass(frozen=True)
class Thresholds:
    """Numbers of the default reward; `config.RewardConfig` says what each is."""

    unsafe_threshold: float
    unsure_threshold: float
    unsafe_penalty: float
    unsure_penalty: float
    clean_threshold: float
    clean_bonus: float
    clip_weight: float


def thresholded_reward(probability: Tensor, similarity: Tensor, t: Thresholds) -> Tensor:
    """Score of images from NSFW probability and caption similarity.

    An image above a threshold is penalised and earns nothing for matching its caption, so that no
    similarity can buy an unsafe image.

    Args:
        probability: of being unsafe, [B] in 0..1.
        similarity: cosine of image and caption, [B].
        t: thresholds and weights.

    Returns:
        float32 [B].
    """
    safe = t.clip_weight * similarity + t.clean_bonus * (probability < t.clean_threshold)
    score = torch.where(probability > t.unsure_threshold, t.unsure_penalty, safe)
    return torch.where(probability > t.unsafe_threshold, t.unsafe_penalty, score).float()


@dataclass(frozen=True)
class DefaultReward:
    """NSFW penalty and CLIP term from one CLIP pass.

    Args:
        clip: embeds images and captions.
        detector: NSFW head of that CLIP.
        thresholds: numbers of the reward.
    """

    clip: ClipScorer
    detector: EmbeddingHead
    thresholds: Thresholds

    def __post_init__(self) -> None:
        dimension = self.clip.embed_texts(["a"]).shape[1]
        check_clip(self.detector.info, self.clip.name, self.clip.pretrained, dimension)

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: list[str]) -> RewardResult:
        embeddings = self.clip.embed_images(images)
        similarity = (embeddings * self.clip.embed_texts(captions)).sum(dim=1)
        rounded = embeddings.half().float() if self.detector.info.round_to_float16 else embeddings
        probability = self.detector(rounded)
        total = thresholded_reward(probability, similarity, self.thresholds)
        parts = {"nsfw_probability": probability, "clip_similarity": similarity}
        return RewardResult(total, parts, embeddings)


def weighted_sum(rewards: Sequence[tuple[str, float, Reward]]) -> Reward:
    """One reward out of several: (name, weight, reward) each.

    The total is the weighted sum of the totals. Embeddings are the first reward's, and its parts keep their
    names; a later one shows up under its own name, unweighted.
    """

    def call(images: Tensor, captions: list[str]) -> RewardResult:
        total, parts, embeddings = 0.0, {}, None
        for i, (name, weight, reward) in enumerate(rewards):
            result = _called(name, reward, images, captions)
            if isinstance(result, Tensor):
                result = RewardResult(result.float().to(images.device))
            result = check_result(result, len(images), name)
            total = total + weight * result.total
            parts |= result.parts if i == 0 else {name: result.total}
            embeddings = result.embeddings if i == 0 else embeddings
        return RewardResult(total, parts, embeddings)

    return call


def _called(name: str, reward: Reward, images: Tensor, captions: list[str]) -> RewardResult | Tensor:
    """Calls a reward, without gradients: a model that scores images would keep its whole graph.

    What it raises becomes a ValueError that names it and the line at fault.
    """
    try:
        with torch.no_grad():
            return reward(images, captions)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())
        raise ValueError(
            f"reward {name} raised {type(error).__name__}: {said} ({place.filename}, line {place.lineno})"
        ) from error


def import_reward(call: str) -> Callable:
    """The function that "my_module:my_function" names.

    Raises:
        ValueError: if it does not exist, saying which half is wrong.
    """
    module_name, _, function_name = call.partition(":")
    if not function_name:
        raise ValueError(f"reward.extra: call is {call!r}; write it as my_module:my_function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"reward.extra: module {module_name} of {call!r} cannot be imported ({error}); "
            "run from the folder that holds it, or install it"
        ) from error
    except Exception as error:  # whatever the user's own code does while it is imported
        raise ValueError(
            f"reward.extra: module {module_name} of {call!r} raised {type(error).__name__} while it was "
            f"imported: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"reward.extra: module {module_name} has no function {function_name}")
    return function
