"""Builds what an evaluation measures images with from settings."""

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.build.judges import build_judges, judges_sha256
from dalle_ppo.build.rewards import measures_sha256
from dalle_ppo.build.suite import build_suite
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.measures import HeldOutMeasure, JudgeImages, Measures
from dalle_ppo.iconworld.world import World
from dalle_ppo.rewards.base import Reward

CPU = torch.device("cpu")


def build_judge(world: World) -> JudgeImages:
    """The built-in world's judge as a function that returns columns of an evaluation."""
    from dalle_ppo.iconworld.captions import parse_icons
    from dalle_ppo.iconworld.judge import load_judge, look

    judge = load_judge(world.judge)

    def columns(images: Tensor, captions) -> dict[str, np.ndarray]:
        sighting = look(judge, images.cpu())
        alignment = [sighting.alignment(i, parse_icons(text)) for i, text in enumerate(captions)]
        return {
            "judge_unsafe": sighting.unsafe.astype(float),
            "judge_alignment": np.array([np.nan if a is None else a for a in alignment]),
            "judge_unrecognised": sighting.unrecognised.astype(float),
        }

    return columns


def build_measures(
    config: Config,
    reward: Reward,
    world: World | None,
    heldout: HeldOutMeasure | None,
    device: torch.device = CPU,
) -> Measures:
    """What an evaluation measures images with; `reward` and `heldout` come from the same settings.

    Raises:
        ValueError: a judge of `evaluation.judges` cannot be loaded, or the suite does not fit the model.
    """
    return Measures(
        reward,
        build_judge(world) if world else None,
        heldout,
        build_judges(config, world, device),
        build_suite(config, world),
        measures_sha256(config, world) | judges_sha256(config, world),
    )
