"""What the images of an evaluation are measured with, and the columns that this gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dalle_ppo.evaluation.baselines import DRAWN
from dalle_ppo.evaluation.columns import unknown
from dalle_ppo.evaluation.heldout import HELDOUT_COLUMNS
from dalle_ppo.evaluation.image_statistics import image_statistics
from dalle_ppo.models.dalle.sampling import log_pi_of_tokens
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.rollout import Rollout, as_float
from dalle_ppo.rewards.base import Reward, check_result
from dalle_ppo.rl.kl import entropy, exact_kl
from dalle_ppo.rl.records import RolloutBatch
from dalle_ppo.runs.pictures import to_numpy

JUDGE_COLUMNS = ("judge_unsafe", "judge_alignment", "judge_unrecognised")
POLICY_COLUMNS = ("kl", "entropy")
OWN_PARTS = ("nsfw_probability", "clip_similarity")
"""Reward parts that have columns of their own; they are there even if the reward lacks them."""
ROWS_AT_ONCE = 64

JudgeImages = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]
"""`(images uint8 [B, 3, H, W], captions) -> {column: [B]}` for each of `JUDGE_COLUMNS`; NaN is missing."""

HeldOutMeasure = Callable[[Tensor, list[str]], dict[str, np.ndarray]]
"""`(images float [B, 3, H, W], captions) -> {column: [B]}`; NaN is missing."""


@dataclass(frozen=True)
class Measures:
    """What images are measured with.

    Args:
        reward: the reward of the run; diversity is computed from the embeddings that it hands on, or missing.
        judge: a held-out judge, or None where there is none.
        heldout: a second CLIP and detector, or None where there is none.
        sha256: of the files they were loaded from, by name, such as "detector".
    """

    reward: Reward
    judge: JudgeImages | None = None
    heldout: HeldOutMeasure | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def image_columns(batch: RolloutBatch, measures: Measures) -> dict[str, np.ndarray]:
    """What does not need the policy: reward and its parts, judge, held-out measures, pixels, embeddings."""
    num, captions, pixels = len(batch), list(batch.captions), as_float(batch.images)
    result = check_result(measures.reward(pixels, captions), num, "of this run")
    tokens = batch.tokens.cpu().numpy().astype(np.int32)
    judge = measures.judge(batch.images, captions) if measures.judge else unknown(*JUDGE_COLUMNS, num=num)
    heldout = measures.heldout(pixels, captions) if measures.heldout else unknown(*HELDOUT_COLUMNS, num=num)
    embeddings = {}
    if result.embeddings is not None:
        embeddings["embeddings"] = result.embeddings.float().cpu().numpy()
    return {
        "reward": result.total.cpu().numpy(),
        **_part_columns(result.parts, num),
        **judge,
        **heldout,
        **image_statistics(to_numpy(batch.images), tokens),
        DRAWN: np.ones(num),
        "tokens": tokens,
        **embeddings,
    }


def _part_columns(parts: dict[str, Tensor], num: int) -> dict[str, np.ndarray]:
    columns = unknown(*OWN_PARTS, num=num)
    for name, part in parts.items():
        columns[name if name in OWN_PARTS else f"reward/{name}"] = part.cpu().numpy()
    return columns


def policy_columns(
    decoder: nn.Module, reference: nn.Module, rollout: Rollout, settings: PolicySettings
) -> dict[str, np.ndarray]:
    """Exact KL from the reference and entropy of the first sample of each caption.

    Args:
        decoder: that drew the images; the KL is 0 where it is `reference`.
        reference: the decoder that training started from.
        rollout: the images, those of a caption in a row.
        settings: of the distribution that tokens are drawn from.

    Returns:
        `kl` and `entropy`, float64 [N], nats per image; NaN for the other samples of a caption.
    """
    batch = rollout.batch
    columns = unknown(*POLICY_COLUMNS, num=len(batch))
    samples = len(batch) // (int(batch.caption_index[-1]) + 1)
    first = torch.arange(0, len(batch), samples, device=batch.tokens.device)
    for rows in first.split(ROWS_AT_ONCE):
        tokens, prompts = batch.tokens[rows], rollout.prompts.select(batch.caption_index[rows])
        log_pi = log_pi_of_tokens(decoder, tokens, prompts, settings)
        kl = torch.zeros(len(rows))
        if decoder is not reference:
            kl = exact_kl(log_pi, log_pi_of_tokens(reference, tokens, prompts, settings)).sum(dim=1)
        columns["kl"][rows.cpu()] = kl.cpu()
        columns["entropy"][rows.cpu()] = entropy(log_pi).sum(dim=1).cpu()
    return columns
