"""PPO on tables, with rollouts, critic, epochs and minibatches, reaches optima known in closed form."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny_models import TINY
from tiny_trainer import NoWriter, tiny_trainer
from torch import Tensor

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.credit import CreditConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.config.kl import KlConfig
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.dalle.sampling import log_pi_of_tokens
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.rl.advantages import gae, rloo, token_rewards, whiten
from dalle_ppo.rl.kl import kl_k1
from dalle_ppo.rl.log_pi import gather_log_probs
from dalle_ppo.rl.losses import ppo_loss, value_loss

CODES = 5
GUIDANCE = 2.0


def log_pi_table(tables: Tensor) -> Tensor:
    """[T, V+1, V] guided log-probs after each position and previous code; `tables` is [2, T, V+1, V]."""
    conditional, unconditional = tables.unbind(0)
    return torch.log_softmax(unconditional + GUIDANCE * (conditional - unconditional), -1)


def previous_codes(tokens: Tensor) -> Tensor:
    return torch.cat([torch.full_like(tokens[:, :1], CODES), tokens[:, :-1]], 1)


def lookup(table: Tensor, tokens: Tensor) -> Tensor:
    """[B, T, ...] rows of a table by position and previous code."""
    return table[torch.arange(tokens.shape[1]), previous_codes(tokens)]


def log_probs_of(tables: Tensor, tokens: Tensor) -> Tensor:
    return lookup(log_pi_table(tables), tokens).gather(-1, tokens[..., None])[..., 0]


def rollout(tables: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """[B, T] codes drawn one after the other."""
    probabilities, drawn = log_pi_table(tables).exp(), []
    previous = torch.full((batch,), CODES)
    for t in range(tables.shape[1]):
        previous = torch.multinomial(probabilities[t, previous], 1, generator=generator)[:, 0]
        drawn.append(previous)
    return torch.stack(drawn, 1)


def train(
    reference: Tensor,
    reward: Callable[[Tensor], Tensor],
    *,
    kl_coef: float,
    iterations: int,
    critic: bool = True,
    whitened: bool = False,
    batch: int = 256,
    learning_rate: float = 0.03,
) -> Tensor:
    """Tables after PPO: k1 in the reward, GAE with lambda 1 or RLOO, two epochs of two minibatches."""
    generator = torch.Generator().manual_seed(0)
    tables = reference.clone().requires_grad_(True)
    value_table = torch.zeros(*reference.shape[1:3], dtype=reference.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([tables], lr=learning_rate, eps=1e-5)
    critic_optimiser = torch.optim.Adam([value_table], lr=5 * learning_rate, eps=1e-5)
    for iteration in range(iterations):
        for group in optimiser.param_groups + critic_optimiser.param_groups:
            group["lr"] = group["lr"] * (iterations - iteration) / (iterations - iteration + 1)
        with torch.no_grad():
            tokens = rollout(tables, batch, generator)
            old, values = log_probs_of(tables, tokens), lookup(value_table, tokens)
            rewards = token_rewards(
                reward(tokens), kl_k1(old, log_probs_of(reference, tokens)), kl_coef=kl_coef
            )
            if critic:
                advantages = gae(rewards, values, 1.0)
            else:
                group_index = torch.arange(batch) // 4
                advantages = rloo(rewards.sum(1), group_index)[:, None].expand_as(rewards)
            returns = advantages + values
            if whitened:
                advantages = whiten(advantages)
        for _ in range(2):
            for rows in torch.randperm(batch, generator=generator).chunk(2):
                log_probs = log_probs_of(tables, tokens[rows])
                loss = ppo_loss(
                    log_probs, old[rows], advantages[rows], clip_range=0.2, dual_clip=3.0
                ).loss.mean()
                tables.grad, value_table.grad = None, None
                loss.backward()
                value_loss(lookup(value_table, tokens[rows]), values[rows], returns[rows]).mean().backward()
                optimiser.step()
                critic_optimiser.step()
    return tables.detach()


def random_tables(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(2, tokens, CODES + 1, CODES, generator=generator, dtype=torch.float64)


def all_sequences(tokens: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(CODES), repeat=tokens)))


def sequence_probabilities(tables: Tensor, sequences: Tensor) -> Tensor:
    return log_probs_of(tables, sequences).exp().prod(1)


@pytest.mark.parametrize("critic", [True, False])
def test_bandit_over_one_token(critic):
    pay = torch.tensor([-1.0, 0.2, 0.0, 1.0, 0.8], dtype=torch.float64)
    tables = train(
        random_tables(1),
        lambda tokens: pay[tokens[:, 0]],
        kl_coef=0.0,
        iterations=40,
        critic=critic,
        whitened=True,
    )
    assert sequence_probabilities(tables, all_sequences(1))[3] > 0.97


def test_sequence_with_a_known_optimum():
    """Paid at the end only: one for each code of 2, 0, 4, 1 up to the first that is wrong."""
    target = torch.tensor([2, 0, 4, 1])

    def reward(tokens: Tensor) -> Tensor:
        return (tokens == target).cumprod(1).sum(1).double()

    tables = train(random_tables(4), reward, kl_coef=0.0, iterations=60, whitened=True)
    assert sequence_probabilities(tables, target[None]).item() > 0.9


@pytest.mark.parametrize("critic", [True, False])
def test_kl_regularised_optimum(critic):
    """pi* is proportional to pi_ref * exp(reward / kl_coef); the scores go in as they are, unnormalised."""
    kl_coef, reference = 0.5, random_tables(3, seed=1)
    pay = torch.randn(3, CODES + 1, CODES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def reward(tokens: Tensor) -> Tensor:
        return 0.5 * lookup(pay, tokens).gather(-1, tokens[..., None])[..., 0].sum(1)

    sequences = all_sequences(3)
    start = sequence_probabilities(reference, sequences)
    optimum = start * torch.exp(reward(sequences) / kl_coef)
    optimum = optimum / optimum.sum()
    tables = train(reference, reward, kl_coef=kl_coef, iterations=80, critic=critic)
    reached = sequence_probabilities(tables, sequences)
    assert (optimum * (optimum / start).log()).sum() > 0.5, "the optimum is far from the start"
    assert (optimum * (optimum / reached).log()).sum() < 0.005


# --- the trainer itself: sampler, networks, critic, scoring passes, optimisers

PAY = torch.tensor([[1.0, -0.5, 0.3, -1.0], [-0.6, 0.9, -0.2, 0.4]])
ONE_CAPTION = CaptionRecord("a", "a red boat", "UNLIKELY")


def trained_policy(num_tokens: int, **settings) -> tuple[Tensor, Tensor, Tensor]:
    """All sequences, and their probabilities before and after training on what their codes pay."""
    shape = replace(TINY, num_image_tokens=num_tokens, num_codes=4)
    config = Config(
        num_iterations=120,
        rollout=RolloutConfig(rollout_batch_size=128),
        credit=CreditConfig(whiten_advantages=False, advantage_clip=None, normalise_scores=False),
        actor=ActorConfig(
            learning_rate=5e-3,
            warmup_iterations=0,
            trainable="all",
            min_entropy=None,
            entropy_coef=settings.pop("entropy_coef", 0.0),
        ),
        update=UpdateConfig(minibatch_size=64, microbatch_size=64),
        kl=KlConfig(**settings),
        critic=CriticConfig(learning_rate=5e-3),
    )
    trainer = tiny_trainer(config, Path("unused"), shape)
    sequences = torch.tensor(list(itertools.product(range(4), repeat=num_tokens)))

    def reward(images: Tensor, captions: list[str], metadata: list[dict]) -> RewardResult:
        codes = (images[:, 0, 0] * 3).round().long()
        return RewardResult(PAY[torch.arange(num_tokens), codes].sum(1))

    def probabilities() -> Tensor:
        prompts, _ = trainer.family.read([ONE_CAPTION.text])
        with torch.no_grad():
            log_pi = log_pi_of_tokens(trainer.actor.module, sequences, prompts, config.policy)
        return gather_log_probs(log_pi, sequences).double().sum(1).exp()

    trainer.reward = reward
    before = probabilities()
    with patch.object(trainer.captions, "next_batch", lambda count: [ONE_CAPTION] * count):
        for _ in range(config.num_iterations):
            trainer.iterate(NoWriter())
    return sequences, before, probabilities()


@pytest.mark.parametrize(
    "num_tokens, settings",
    [
        (2, {"estimator": "k1", "placement": "reward"}),
        (1, {"estimator": "k1", "placement": "reward"}),
        (1, {"estimator": "exact", "placement": "loss"}),
        (1, {"estimator": "k2", "placement": "loss"}),
        (1, {"estimator": "exact", "placement": "loss", "entropy_coef": -0.3}),
        (1, {"estimator": "exact", "placement": "loss", "entropy_coef": 0.3}),
    ],
)
def test_the_trainer_reaches_the_regularised_optimum(num_tokens, settings):
    """Of `E[pay] - c KL + e H`, per token: proportional to `(ref^c exp(pay))^(1 / (c + e))`."""
    c, e = 0.8, settings.get("entropy_coef", 0.0)
    sequences, start, reached = trained_policy(num_tokens, kl_coef=c, **settings)
    pay = PAY[torch.arange(num_tokens), sequences].sum(1).double()
    optimum = torch.softmax((c * start.log() + pay) / (c + e), 0)
    assert start.sum() == pytest.approx(1, abs=1e-5), "no other sequence can be drawn"
    assert (optimum * (optimum / start).log()).sum() > 0.2, "the optimum is far from the start"
    assert (optimum * (optimum / reached).log()).sum() < 0.01
