"""How much of the policy gradient is signal: what to train, and with which lambda.

    python benchmarks/gradient_signal.py --batches 10

Trains the critic of the built-in world on the untouched policy, draws batches from it, and takes the gradient
of `log pi * advantage` for each batch. Two batches share the signal but not the noise, so the mean product of
the gradients of different batches, divided by the mean product of a gradient with itself, is the share of the
gradient's power that is signal. Prints it for parts of the decoder (rows) and advantages (columns).

A gradient can have little noise and yet point elsewhere, as with a small lambda and a poor critic. The second
table is the yardstick for that: `rho`, which counts only what lies along the gradient of lambda 1.
"""

import argparse
import math
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


def rho(g: Tensor, r: Tensor) -> tuple[float, float]:
    """The share of a candidate gradient's power that is of use: that lies along the true gradient.

    With m = E g and s = E r it estimates cos^2(m, s) |m|^2 / E|g|^2, from

        (mean over i != j of <g_i, r_j>)^2 / (mean of |g_i|^2 * mean over j != k of <r_j, r_k>),

    in which no product has the noise of one batch twice, except in the candidate's own power. With the same
    curvature in all directions and the best step length, it is the expected gain of a step, relative to that
    of the true gradient without noise. Where noise dominates, twice the rho is worth twice the images. For
    g = r it is `signal_share`.

    Args:
        g: [K, P], the candidate's gradients of K >= 2 batches.
        r: [K, P], unbiased gradients of the same batches.

    Returns:
        rho, below 0 if the candidate points away from the signal, and its jackknife standard error over the
        batches (NaN with 2 batches). NaN where r shows no signal at all.

    Source: the jackknife, Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11.
    """
    g, r, num = g.double(), r.double(), len(g)
    power = g.square().sum(1)

    def pairs(gram: Tensor) -> Tensor:
        """Mean over i != j of all batches, then without each batch."""
        per_batch = gram.sum(0) + gram.sum(1) - 2 * gram.diagonal()
        whole = (gram.sum() - gram.trace())[None]
        return torch.cat([whole / (num * (num - 1)), (whole - per_batch) / ((num - 1) * (num - 2))])

    along, signal = pairs(g @ r.T), pairs(r @ r.T)
    powers = torch.cat([power.mean()[None], (power.sum() - power) / (num - 1)])
    found = torch.where(signal > 0, along * along.abs() / (powers * signal), math.nan)
    error = ((num - 1) * found[1:].var(correction=0)).sqrt()
    return float(found[0]), float(error)


def print_tables(batches: list[list[list[Tensor]]], names: list[str]) -> None:
    """Prints signal shares, then rho, from what `gradients` gave for each batch."""
    heads = " | ".join(f"lambda {value:g}" for value in LAMBDAS)
    shares, yardsticks = [], []
    for part, pattern in PARTS.items():
        chosen = np.flatnonzero([pattern in name for name in names])
        stacked = [
            torch.stack([torch.cat([batch[column][i].flatten() for i in chosen]) for batch in batches])
            for column in range(len(LAMBDAS))
        ]
        start = f"| {part} | {stacked[0].shape[1] / 1000:.0f} k | "
        shares.append(start + " | ".join(f"{signal_share(g):.1%}" for g in stacked) + " |")
        found = [rho(g, stacked[LAMBDAS.index(1.0)]) for g in stacked]
        yardsticks.append(
            start + " | ".join(f"{v:.1%} ± {e:.1%}" for v, e in found).replace("nan%", "?") + " |"
        )
    for title, lines in (
        ("share of the power that is signal", shares),
        ("rho: share of the power that lies along the gradient of lambda 1, ± standard error", yardsticks),
    ):
        print(f"\n{title}:\n\n| part | weights | {heads} |\n|---|---" + "|---" * len(LAMBDAS) + "|")
        print("\n".join(lines))


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
    print_tables(batches, names)


if __name__ == "__main__":
    main()
