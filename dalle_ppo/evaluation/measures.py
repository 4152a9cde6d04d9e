"""What the images of an evaluation are measured with, and the resulting columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.evaluation.baselines import DRAWN
from dalle_ppo.evaluation.columns import unknown
from dalle_ppo.evaluation.heldout import HELDOUT_COLUMNS
from dalle_ppo.evaluation.image_statistics import image_statistics
from dalle_ppo.evaluation.judges import judge_columns
from dalle_ppo.evaluation.suite import Suite
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.policy.rollout import as_float
from dalle_ppo.rewards.base import Reward, check_result, metadata_of
from dalle_ppo.rewards.in_parts import score_in_parts
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.pictures import to_numpy

JUDGE_COLUMNS = ("judge_unsafe", "judge_alignment", "judge_unrecognised")
POLICY_COLUMNS = ("kl", "entropy")
OWN_PARTS = ("nsfw_probability", "clip_similarity")
"""Reward parts that have metrics of their own; the others become columns `reward/NAME`."""
ROWS_AT_ONCE = 64

JudgeImages = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]
"""`(images uint8 [B, 3, H, W], captions) -> {column: [B]}` for each of `JUDGE_COLUMNS`; NaN is missing."""

HeldOutMeasure = Callable[[Tensor, list[str]], dict[str, np.ndarray]]
"""`(images float [B, 3, H, W], captions) -> {column: [B]}`; NaN is missing."""


@dataclass(frozen=True)
class Measures:
    """What images are measured with.

    Args:
        reward: the run's reward; diversity is computed from the embeddings it returns, if any.
        judge: a held-out judge, or None.
        heldout: a second CLIP and detector, or None.
        judges: the held-out judges of `evaluation.judges`, by label.
        suite: captions that test one ability each, or None.
        sha256: hashes of the files they were loaded from, by name, such as "detector".
    """

    reward: Reward
    judge: JudgeImages | None = None
    heldout: HeldOutMeasure | None = None
    judges: Mapping[str, Reward] = field(default_factory=dict)
    suite: Suite | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def image_columns(
    batch: Experience, measures: Measures, halving: Halving | None = None
) -> dict[str, np.ndarray]:
    """Columns that do not need the policy: reward and parts, judge, held-out measures, image statistics.

    Args:
        batch: the images.
        measures: what they are measured with.
        halving: remembers how many images the reward can take at a time.
    """
    num, captions, pixels = len(batch), list(batch.captions), as_float(batch.images)
    metadata = metadata_of(batch.tags, batch.caption_ids)
    # A copy, so that a reward that changes its images does not affect the other measures.
    whole = measures.reward, pixels.clone(), captions, metadata
    scored = score_in_parts(*whole, halving or Halving(), "evaluation.batch_size")
    result = check_result(scored, num, "of this run")
    tokens = batch.tokens.cpu().numpy().astype(np.int32)
    judge = measures.judge(batch.images, captions) if measures.judge else unknown(*JUDGE_COLUMNS, num=num)
    heldout = measures.heldout(pixels, captions) if measures.heldout else unknown(*HELDOUT_COLUMNS, num=num)
    embeddings = {}
    if result.embeddings is not None:
        embeddings["embeddings"] = result.embeddings.float().cpu().numpy()
    return {
        "reward": result.total.cpu().numpy(),
        **_part_columns(result.parts),
        **judge,
        **heldout,
        **judge_columns(measures.judges, pixels, captions, metadata),
        **image_statistics(to_numpy(batch.images), tokens),
        DRAWN: np.ones(num),
        "tokens": tokens,
        **embeddings,
    }


def _part_columns(parts: dict[str, Tensor]) -> dict[str, np.ndarray]:
    named = {name: name if name in OWN_PARTS else f"reward/{name}" for name in parts}
    return {named[name]: part.cpu().numpy() for name, part in parts.items()}


@torch.no_grad()
def policy_columns(
    policy: nn.Module,
    reference: nn.Module,
    family: PolicyFamily,
    drawn: Experience,
    halving: Halving | None = None,
) -> dict[str, np.ndarray]:
    """Exact KL from the reference and entropy of the first sample of each caption.

    Args:
        policy: the model that drew the images; the KL is 0 if it is `reference`.
        reference: the model that training started from.
        family: how both models score.
        drawn: the images; those of one caption are adjacent.
        halving: remembers how many of them fit.

    Returns:
        `kl` and `entropy`, float64 [N], nats per image; NaN for the other samples of a caption.
    """
    samples = len(drawn) // (int(drawn.caption_index[-1]) + 1)
    first = torch.arange(0, len(drawn), samples, device=drawn.tokens.device)
    is_reference = policy is reference

    def work(size: int) -> dict[str, np.ndarray]:
        columns = unknown(*POLICY_COLUMNS, num=len(drawn))
        for index in first.split(size):
            rows = drawn.select(index)
            scores = family.score(policy, rows, entropy=True, reference=None if is_reference else reference)
            kl = torch.zeros(len(index)) if is_reference else scores.kl.sum(dim=1)
            columns["kl"][index.cpu()] = kl.cpu()
            columns["entropy"][index.cpu()] = scores.entropy.sum(dim=1).cpu()
        return columns

    return (halving or Halving()).run("scoring", "evaluation.batch_size", ROWS_AT_ONCE, work)
