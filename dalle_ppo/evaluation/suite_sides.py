"""Draws a suite with policy and reference, from the same noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.evaluation.columns import Columns
from dalle_ppo.evaluation.drawing import Setup, Side, in_batches
from dalle_ppo.evaluation.suite import Suite, suite_scores
from dalle_ppo.runs.provenance import weights_sha256


def evaluate_suite(
    suite: Suite, reference: nn.Module, policy: nn.Module, setup: Setup
) -> tuple[dict, set[Path]]:
    """Draws one image for each caption and side, and scores them.

    Args:
        suite: captions and judge.
        reference, policy: the two models.
        setup: the evaluation's; noise, family and folder are used.

    Returns:
        The entry `suite` of evaluation.json, and the folders in which the batches are kept.
    """
    evaluation = replace(setup.config.evaluation, samples_per_caption=1)
    own = replace(
        setup,
        config=replace(setup.config, evaluation=evaluation),
        captions=suite.captions,
        identity={**setup.identity, "suite": suite.name, "suite_captions": [c.text for c in suite.captions]},
    )
    sides = {
        "reference": draw_suite("suite_reference", reference, suite, own),
        "policy": draw_suite("suite_policy", policy, suite, own),
    }
    scored = {name: side.columns["passed"] for name, side in sides.items()}
    tasks = np.array([caption.tag for caption in suite.captions])
    scores = suite_scores(suite.name, tasks, {**scored, "ceiling": suite.ceiling()})
    return scores, {side.batches for side in sides.values()}


@torch.no_grad()
def draw_suite(name: str, decoder: nn.Module, suite: Suite, setup: Setup) -> Side:
    """The images of one model, as one column `passed`, 0 or 1."""

    def draw(number: int, captions: list[CaptionRecord]) -> Columns:
        drawn = setup.collect(decoder, captions, 1)
        return {"passed": suite.passed(drawn.images, list(drawn.captions)).astype(np.float64)}

    return in_batches(name, weights_sha256(decoder), draw, setup)
