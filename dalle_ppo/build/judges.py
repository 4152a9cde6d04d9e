"""Builds the held-out judges of `evaluation.judges`, and tries them before a run."""

import warnings
from collections.abc import Mapping

import torch

from dalle_ppo.build.rewards import build_reward, measures_sha256
from dalle_ppo.build.trial import random_images, random_state_kept, trial_records
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.config.term import TermConfig
from dalle_ppo.evaluation.judges import judge_columns
from dalle_ppo.iconworld.world import World
from dalle_ppo.policy.rollout import as_float
from dalle_ppo.rewards.base import metadata_of
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.training.trainer import Trainer

NOT_OF_A_TERM = ("judge", "heldout_clip", "heldout_detector")


def build_judges(config: Config, world: World | None, device: torch.device) -> dict[str, CombinedReward]:
    """The judges by label; each is a reward of its own, so that none is called when the reward is.

    Raises:
        ValueError: a judge cannot be loaded, or belongs to the built-in world but the model does not.
    """
    judges = {}
    for judge in config.evaluation.parsed_judges:
        if config.reward.settings_of(judge.name) is not None:
            warnings.warn(
                f"evaluation.judges: {judge.label} is also a term of the reward, with other settings; as a "
                "judge it is independent only if these make it load something else",
                stacklevel=2,
            )
        try:
            judges[judge.label] = build_reward(config, world, device, judge=_alone(judge))
        except ValueError as error:
            message = str(error).replace("reward.terms: ", "").replace("reward term", "judge")
            raise ValueError(f"evaluation.judges: {message}") from error
    return judges


def judges_sha256(config: Config, world: World | None) -> dict[str, str]:
    """Hashes of the files that judges were loaded from, by name."""
    return {
        f"judges.{judge.label}.{name}": value
        for judge in config.evaluation.parsed_judges
        for name, value in measures_sha256(config, world, _alone(judge)).items()
        if name not in NOT_OF_A_TERM
    }


def _alone(judge: TermConfig) -> TermConfig:
    """A judge as the only term of a reward, which is then its value."""
    (term,) = RewardConfig([{**judge.to_mapping(), "weight": 1.0}]).parsed
    return term


def try_judges(trainer: Trainer, judges: Mapping[str, CombinedReward]) -> None:
    """Lets the judges see two images of random codes before training, so that a mistake shows in seconds.

    Raises:
        ValueError: a judge raised, or returned something unusable.
    """
    with random_state_kept(trainer.family.device):
        pixels = as_float(random_images(trainer))
        for label, judge in judges.items():
            records = trial_records(trainer, judge.terms)
            metadata = metadata_of([record.tag for record in records], [record.id for record in records])
            judge_columns({label: judge}, pixels, [record.text for record in records], metadata)
