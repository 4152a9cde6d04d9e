"""How much of the policy gradient is signal: what to train, and with which lambda.

    python benchmarks/gradient_signal.py --batches 10

Trains the critic of the built-in world on the untouched policy, draws batches from it, and takes the gradient
of `log pi * advantage` for each batch. Two batches share the signal but not the noise, so the mean product of
the gradients of different batches, divided by the mean product of a gradient with itself, is the share of the
gradient's power that is signal. Prints it for parts of the decoder (rows) and advantages (columns).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.rl.advantages import gae, token_rewards
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.trainer import Trainer

PARTS = {
    "whole decoder": "",
    "self-attention": "self_attn.",
    "feed-forward": "glu.fc",
    "head": "lm_head",
    "cross-attention": "encoder_attn.",
    "its queries": "encoder_attn.q_proj",
    "its outputs": "encoder_attn.out_proj",
    "its keys": "encoder_attn.k_proj",
    "its values": "encoder_attn.v_proj",
}
LAMBDAS = (1.0, 0.97, 0.95, 0.9)


class NoWriter:
    """Takes the place of TensorBoard."""

    def write_histograms(self, *_) -> None:
        pass


def advantages_of(trainer: Trainer, drawn: Experience) -> tuple[Experience, list[Tensor]]:
    """The batch as the networks score it, and its advantages [B, T] for each of `LAMBDAS`."""
    result = trainer.score(drawn)
    scored = trainer.score_passes(drawn)
    scores = result.total / trainer.progress.credit.score_moments.std
    rewards = token_rewards(scores, torch.zeros_like(scored.values), 0.0)
    return scored, [gae(rewards, scored.values, gae_lambda) for gae_lambda in LAMBDAS]


def gradients(trainer: Trainer) -> list[list[Tensor]]:
    """Gradients of one batch: one list per value of `LAMBDAS`, with one gradient per parameter."""
    scored, advantages = advantages_of(trainer, trainer.collect())
    trainer.progress.iteration += 1
    params = list(trainer.actor.module.parameters())
    sums = [[torch.zeros_like(p) for p in params] for _ in LAMBDAS]
    for rows in torch.arange(len(scored)).split(trainer.config.update.microbatch_size):
        log_probs = trainer.family.score(trainer.actor.module, scored.select(rows)).log_probs
        for total, advantage in zip(sums, advantages, strict=True):
            parts = torch.autograd.grad((log_probs * advantage[rows]).sum(), params, retain_graph=True)
            for whole, part in zip(total, parts, strict=True):
                whole.add_(part)
    return sums


def signal_share(vectors: Tensor) -> float:
    """The share of power that the gradients [K, P] of K batches have in common."""
    own = vectors.square().sum()
    num = len(vectors)
    return float((vectors.sum(0).square().sum() - own) / (num * (num - 1)) / (own / num))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=14, help="iterations that train the critic")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = Config(
        seed=args.seed,
        num_iterations=1000,
        actor=ActorConfig(trainable="all", warmup_iterations=1),
        critic=CriticConfig(warmup_iterations=args.warmup),
    )
    trainer = build_trainer(config, Path(tempfile.mkdtemp()))
    for _ in range(args.warmup):
        explained = trainer.iterate(NoWriter())["explained_variance"]
    print(f"explained variance of the critic after {args.warmup} iterations: {explained:.2f}")
    batches = [gradients(trainer) for _ in range(args.batches)]
    names = [name for name, _ in trainer.actor.module.named_parameters()]
    print("| part | weights | " + " | ".join(f"lambda {value:g}" for value in LAMBDAS) + " |")
    print("|---|---" + "|---" * len(LAMBDAS) + "|")
    for part, pattern in PARTS.items():
        chosen = np.flatnonzero([pattern in name for name in names])
        shares = []
        for column in range(len(LAMBDAS)):
            flat = [torch.cat([batch[column][i].flatten() for i in chosen]) for batch in batches]
            shares.append(signal_share(torch.stack(flat)))
        num = sum(batches[0][0][i].numel() for i in chosen)
        print(f"| {part} | {num / 1000:.0f} k | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


if __name__ == "__main__":
    main()
