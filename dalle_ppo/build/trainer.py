"""Builds a trainer from settings."""

from dataclasses import replace
from pathlib import Path

import torch

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.build.captions import (
    ANCHOR_STREAM,
    SAMPLES_STREAM,
    TRAINING_STREAM,
    build_captions,
    evaluation_captions,
)
from dalle_ppo.build.models import choose_device, load_model, pinned
from dalle_ppo.build.networks import build_networks, divided
from dalle_ppo.build.rewards import build_reward
from dalle_ppo.build.unsafe import unsafe_detector
from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.config.settings import Config
from dalle_ppo.training.anchor import draw_anchor, undrawn_anchor
from dalle_ppo.training.eight_bit import check_optimizers
from dalle_ppo.training.scoring import SAMPLES, Networks
from dalle_ppo.training.trainer import Trainer


def build_trainer(config: Config, run_dir: Path, team: Team = ALONE, dry: bool = False) -> Trainer:
    """Builds everything that training needs, without writing anything.

    Args:
        config: all settings.
        run_dir: the run's folder.
        team: the processes that train together; each builds everything for its own device.
        dry: only to look at sizes. Networks stay whole in spite of `update.shard`, on the CPU, as a device
            may be too small for them, and of the anchor only the captions are read.

    Returns:
        A trainer; its `config` names the commit of any weights that came from the hub.
    """
    device = choose_device(config.device)
    check_optimizers(config, device)
    loaded = load_model(config.model.path, device, config.model.revision)
    config = pinned(config, loaded.files)
    config.policy.check_start_token(loaded.decoder.config.image_vocab_count)
    divides = config.update.shard == "full" and team.size > 1
    if divides:
        loaded.decoder.cpu()  # and its copies: a device need not hold them whole
    networks = build_networks(config, loaded)
    networks = divided(networks, team) if divides and not dry else with_anchor(config, networks, dry)
    reward = build_reward(config, loaded.world, device, config.model.frozen_dtype)
    captions = PrefetchedCaptions(build_captions(config, config.seed, TRAINING_STREAM, "train"))
    samples = evaluation_captions(config, min(SAMPLES, config.evaluation.num_captions), SAMPLES_STREAM)
    trainer = Trainer(config, run_dir, networks, reward, captions, samples, team)
    if config.reward.settings_of("nsfw") is None and loaded.world is not None:
        with torch.random.fork_rng(devices=[]):  # a run's numbers do not depend on what blurs its samples
            trainer.detect = unsafe_detector("builtin", loaded.world, device)
    return trainer


def with_anchor(config: Config, networks: Networks, dry: bool = False) -> Networks:
    """Networks with the anchor's images, if there is an anchor; they are drawn, unless `dry`."""
    if not config.anchor.coef:
        return networks
    shares = config.anchor.shares or config.captions.shares
    of_anchor = replace(config, captions=replace(config.captions, shares=shares))
    source = build_captions(of_anchor, config.seed, ANCHOR_STREAM, "train")
    captions = source.next_batch(config.anchor.num_images)
    if dry:
        return replace(networks, anchor=undrawn_anchor(captions, config))
    anchor = draw_anchor(networks.family, networks.reference, captions, config)
    return replace(networks, anchor=anchor)
