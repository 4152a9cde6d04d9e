"""Builds the suite that `evaluation.suite` names."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.captions.streams import CaptionRecord
from dalle_ppo.captions.text import caption_id
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.suite import Suite
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.suite import Look, passed, scene_of, suite_prompts
from dalle_ppo.iconworld.world import World
from dalle_ppo.runs.pictures import to_numpy


def build_suite(config: Config, world: World | None) -> Suite | None:
    """The suite of the settings; None if there is none.

    Raises:
        ValueError: it belongs to the built-in world but the model does not.
    """
    name = config.evaluation.suite
    if name is None:
        return None
    if world is None:
        raise ValueError(
            f"evaluation.suite: {name} asks for the built-in world's icons, which only its judge knows; with "
            f"model.path {config.model.path} leave evaluation.suite out"
        )
    look = judge_eyes(world)
    prompts = {prompt.text: prompt for prompt in suite_prompts()}

    def score(images: Tensor, captions: Sequence[str]) -> np.ndarray:
        return passed([prompts[text] for text in captions], to_numpy(images), look)

    def ceiling() -> np.ndarray:
        rng = np.random.default_rng(0)
        scenes = draw_batch([scene_of(prompt, rng) for prompt in prompts.values()])
        return passed(list(prompts.values()), scenes, look)

    return Suite(
        name,
        [CaptionRecord(text, prompt.task, caption_id(text)) for text, prompt in prompts.items()],
        score,
        ceiling,
    )


def judge_eyes(world: World) -> Look:
    """The built-in world's judge, as the suite's rules call it."""
    from dalle_ppo.iconworld.judge import load_judge, look

    judge = load_judge(world.judge)

    def eyes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sighting = look(judge, torch.from_numpy(images).permute(0, 3, 1, 2))
        return sighting.present, sighting.color

    return eyes
