"""Builds a trainer from settings."""

import copy
from pathlib import Path

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.build.captions import SAMPLES_STREAM, TRAINING_STREAM, build_captions, evaluation_captions
from dalle_ppo.build.models import LoadedModel, choose_device, load_model, pinned
from dalle_ppo.build.rewards import build_reward
from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.config.settings import Config
from dalle_ppo.training.credit import ESTIMATORS
from dalle_ppo.training.scoring import Networks
from dalle_ppo.training.trainer import Trainer


def build_trainer(config: Config, run_dir: Path, team: Team = ALONE) -> Trainer:
    """Builds everything that training needs, without writing anything.

    Args:
        config: all settings.
        run_dir: the run's folder.
        team: the processes that train together; each builds everything for its own device.

    Returns:
        A trainer; its `config` names the commit of any weights that came from the hub.
    """
    device = choose_device(config.device)
    loaded = load_model(config.model.path, device, config.model.revision)
    config = pinned(config, loaded.files)
    config.policy.check_start_token(loaded.decoder.config.image_vocab_count)
    networks = build_networks(config, loaded)
    reward = build_reward(config, loaded.world, device)
    captions = PrefetchedCaptions(build_captions(config, config.seed, TRAINING_STREAM, "train"))
    samples = evaluation_captions(config, min(32, config.evaluation.num_captions), SAMPLES_STREAM)
    return Trainer(config, run_dir, networks, reward, captions, samples, team)


def build_networks(config: Config, loaded: LoadedModel) -> Networks:
    """The loaded model as a frozen reference, a trainable copy, and a critic if the advantages need one."""
    family = loaded.family(config.policy)
    reference = loaded.decoder.eval().requires_grad_(False)
    actor = copy.deepcopy(reference)
    for name, parameter in actor.named_parameters():
        parameter.requires_grad_(family.trained(name, config.actor.trainable))
    critic = None
    if ESTIMATORS[config.credit.advantage].needs_critic:
        critic = family.new_critic(reference).requires_grad_(True)
    return Networks(family, actor, reference, critic)
