"""The detector of a run or of the built-in world, for pictures that people will see."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from dalle_ppo.build.models import is_run
from dalle_ppo.build.rewards import build_reward
from dalle_ppo.config.command_line import load_config
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World
from dalle_ppo.policy.rollout import as_float
from dalle_ppo.training.guards import Detect


def unsafe_detector(model: str, world: World | None, device: torch.device) -> Detect | None:
    """`(images uint8 [N, 3, H, W], caption) -> [N] bools`; None, with a note, without a detector.

    Args:
        model: a run, whose reward's own detector is used if it has one, or anything else that draws.
        world: the built-in world that the model belongs to, if it does; its detector steps in.
        device: where the detector computes.
    """
    config = load_config(Path(model) / "config.yaml") if is_run(model) else Config()
    if world is None and not is_run(model):
        print("images are not checked: these weights come without an NSFW detector")
        return None
    nsfw = config.reward.settings_of("nsfw")
    if nsfw is None and world is None:
        print("images are not checked: this run's reward has no nsfw term")
        return None
    if nsfw is None:  # the default reward reads the world's detector
        config = Config()
        nsfw = config.reward.settings_of("nsfw")
    # No other term says anything about safety, and the user's own terms may not be importable here.
    only = RewardConfig(terms=[{"name": "nsfw", **dataclasses.asdict(nsfw)}])
    reward = build_reward(dataclasses.replace(config, reward=only), world, device)

    def detect(images: Tensor, caption: str) -> list[bool]:
        flagged = []
        for part in images.to(device).split(64):
            scores = reward(as_float(part), [caption] * len(part)).parts["nsfw_probability"]
            flagged += (~(scores <= nsfw.unsafe_threshold)).tolist()  # NaN too
        return flagged

    return detect
