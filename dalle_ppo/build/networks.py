"""Builds the networks that a run trains or compares with."""

import copy
from dataclasses import replace

import torch
from torch import nn

from dalle_ppo.base.team import Team
from dalle_ppo.build.models import LoadedModel
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.models.adapters import Lora
from dalle_ppo.models.dalle.adapted import adapted_critic, adapted_decoder
from dalle_ppo.models.dalle.checkpointing import set_checkpointing
from dalle_ppo.models.dalle.sharded import shard
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.models.precision import narrow
from dalle_ppo.runs.provenance import weights_sha256
from dalle_ppo.training.credit import ESTIMATORS
from dalle_ppo.training.scoring import Networks

CRITIC_STREAM = 2**41
"""Added to the run's seed for the start of the critic's adapters; above every seed."""


def build_networks(config: Config, loaded: LoadedModel) -> Networks:
    """The loaded model as a frozen reference, an actor, and a critic if the advantages need one.

    Trained networks are copies of the reference, or share its body and train adapters.

    Raises:
        ValueError: an adapter is asked for, and peft is missing.
    """
    family = replace(
        loaded.family(config.policy),
        stores_kept=True,
        logits_chunk=config.update.logits_chunk,
        dtype=getattr(torch, config.update.dtype),
        frozen_dtype=getattr(torch, config.model.frozen_dtype),
    )
    reference = loaded.decoder.eval().requires_grad_(False)
    actor = critic = sha256 = None
    needs_critic = ESTIMATORS[config.credit.advantage].needs_critic
    if config.actor.adapter == "none":
        actor = trainable_copy(reference, family, config.actor.trainable)
    if needs_critic and config.critic.adapter == "none":
        critic = family.new_critic(reference).requires_grad_(True)
    if config.model.frozen_dtype != "float32":  # after the copies, which keep every bit
        sha256 = weights_sha256(reference)
        narrow(reference, family.frozen_dtype, keep=("lm_head",))
        for part in family.frozen().values():
            narrow(part, family.frozen_dtype)
    if actor is None:
        lora = lora_of(config.actor, config.seed)
        actor = adapted_decoder(reference, lora, lambda name: family.trained(name, config.actor.trainable))
    if needs_critic and critic is None:
        critic = adapted_critic(reference, lora_of(config.critic, config.seed + CRITIC_STREAM))
    for network in (actor, critic):
        if network is not None:
            set_checkpointing(network, config.update.gradient_checkpointing)
    return Networks(family, actor, reference, critic, reference_sha256=sha256)


def divided(networks: Networks, team: Team) -> Networks:
    """The networks with actor, reference and critic divided among processes, in place."""
    sha256 = networks.reference_sha256 or weights_sha256(networks.reference)
    mesh = team.mesh()
    for network in (networks.actor, networks.reference, networks.critic):
        if network is not None:
            shard(network, mesh)
    return replace(networks, reference_sha256=sha256)


def trainable_copy(reference: nn.Module, family: PolicyFamily, which: str) -> nn.Module:
    """A copy that trains what `actor.trainable` says."""
    actor = copy.deepcopy(reference)
    for name, parameter in actor.named_parameters():
        parameter.requires_grad_(family.trained(name, which))
    return actor


def lora_of(settings: ActorConfig | CriticConfig, seed: int) -> Lora:
    """The adapters that a section of the settings asks for."""
    return Lora(settings.lora_rank, settings.lora_alpha, seed)
