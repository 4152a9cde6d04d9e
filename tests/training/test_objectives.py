"""Each objective's gradient against the enumerated one of a policy of 5 codes and 4 tokens, in float64.

The oracle multiplies probabilities: it knows nothing of log-probs, clipping by minima, or credit.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parsing import parse
from torch import Tensor

from dalle_ppo.config.objectives import ddpo, dpok, grpo
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.credit import CreditState, credit_metrics
from dalle_ppo.training.objective import find_objective
from tests.training.test_policy_gradient import (
    World,
    assert_same,
    every_group,
    normalised_in_groups_of_three,
    relative_difference,
)


def batch(world: World, rows: Tensor, group_index: Tensor, old_log_probs: Tensor, **columns) -> Experience:
    """Sequences as images with scores."""
    ids = tuple(str(number) for number in group_index.tolist())
    return Experience(
        captions=ids,
        tags=ids,
        caption_ids=ids,
        caption_index=group_index,
        tokens=world.sequences[rows],
        sampler_log_probs=old_log_probs,
        images=torch.zeros(len(rows), 3, 0, 0, dtype=torch.uint8),
        scores=world.reward[rows],
        old_log_probs=old_log_probs,
        ref_log_probs=old_log_probs,
        **columns,
    )


class Lagging:
    """All sequences as an older policy draws them, and the ratio of today's probabilities to theirs."""

    def __init__(self, spread: float = 0.15) -> None:
        self.world = World()
        generator = torch.Generator().manual_seed(5)
        older = [
            part.detach() + spread * torch.randn(part.shape, generator=generator, dtype=torch.float64)
            for part in self.world.parameters
        ]
        position, previous = self.world.states()
        at = (position, previous, self.world.sequences)
        self.older = self.world.step_probabilities(*older)[at]
        self.now = self.world.step_probabilities(*self.world.parameters)[at]
        self.ratio = (self.now / self.older).detach()
        self.advantages = self.world.at_every_token(self.world.reward)

    def expected(self, weights: Tensor) -> Tensor:
        """Gradient of the log-probs with these weights [N, T], expected over the older policy's images."""
        drawn = self.older.prod(1, keepdim=True)
        return self.world.gradient((drawn * weights * self.now.log()).sum())

    def of_loss(self, objective: str, settings: object) -> tuple[Tensor, Tensor]:
        """The same from the objective's loss, and what it says is clipped."""
        rows = torch.arange(len(self.world.sequences))
        images = batch(self.world, rows, rows, self.older.log(), advantages=self.advantages)
        policy = find_objective(objective).loss(TokenScores(self.world.log_probs()), images, settings)
        torch.testing.assert_close(policy.ratio.log().mean(1), self.ratio.log().mean(1))
        drawn = self.older.prod(1, keepdim=True)
        return -self.world.gradient((drawn * policy.loss).sum()), policy.clipped


def unclipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    return ~((advantages > 0) & (ratio > 1 + high) | (advantages < 0) & (ratio < 1 - low))


@pytest.mark.parametrize(
    "objective, settings, low, high",
    [
        ("ddpo", ddpo.Settings(), 0.2, 0.2),
        ("grpo", grpo.Settings(), 0.2, 0.28),
        ("grpo", grpo.Settings(clip_range=0.1, clip_range_high=0.3), 0.1, 0.3),
    ],
)
def test_clipped_tokens(objective, settings, low, high):
    lagging = Lagging()
    kept = unclipped(lagging.ratio, lagging.advantages, low, high)
    got, clipped = lagging.of_loss(objective, settings)
    assert torch.equal(clipped, ~kept) and 0.1 < clipped.double().mean() < 0.5
    assert_same(got, lagging.expected(lagging.advantages * lagging.ratio * kept))


def test_clipped_images():
    """GSPO: the ratio is the geometric mean over tokens, and an image is clipped as a whole."""
    lagging = Lagging()
    whole = (lagging.ratio.prod(1, keepdim=True) ** (1 / 4)).expand_as(lagging.ratio)
    kept = unclipped(whole, lagging.advantages, 0.1, 0.15)
    settings = grpo.Settings(ratio="image", clip_range=0.1, clip_range_high=0.15)
    got, clipped = lagging.of_loss("grpo", settings)
    assert torch.equal(clipped, ~kept) and 0.1 < clipped.double().mean() < 0.5
    assert_same(got, lagging.expected(lagging.advantages * whole * kept))


@pytest.mark.parametrize("max_ratio", [1.1, 2.0])
def test_truncated_tokens(max_ratio):
    lagging = Lagging(0.3)
    got, clipped = lagging.of_loss("dpok", dpok.Settings(max_ratio=max_ratio))
    assert torch.equal(clipped, lagging.ratio > max_ratio) and clipped.any()
    assert_same(got, lagging.expected(lagging.advantages * lagging.ratio.clamp(max=max_ratio)))


def test_the_bias_of_replay():
    """As the docs say: the product of all ratios is unbiased, each token's own ratio is not."""
    lagging = Lagging()
    truth = lagging.world.reward_gradient()
    product = lagging.ratio.prod(1, keepdim=True)
    assert_same(lagging.expected(lagging.advantages * product), truth)
    biased, _ = lagging.of_loss("dpok", dpok.Settings())
    assert 0.1 < relative_difference(biased, truth) < 0.5
    unweighted = lagging.expected(lagging.advantages)
    assert relative_difference(unweighted, truth) > relative_difference(biased, truth)
    # It is gone where the policy has not moved.
    assert_same(Lagging(0.0).of_loss("dpok", dpok.Settings())[0], truth)


# ---------------------------------------------------------------- credit and loss together

PLAIN = ("--credit.normalise_scores", "false", "--credit.advantage_clip", "null")


def expected_over_groups(world: World, size: int, objective: str, *argv: str) -> Tensor:
    """The whole objective's expected gradient on its first step, over every possible group of images."""
    config = parse("--objective", objective, *PLAIN, *argv)
    rows, group_index, weights = every_group(world, size)
    found, log_probs = find_objective(objective), world.log_probs()[rows]
    images = batch(world, rows, group_index, log_probs.detach())
    given, _ = found.credit(images, config, CreditState())
    loss = found.loss(TokenScores(log_probs), given, config.objective_settings).loss
    return -world.gradient((weights[:, None] * loss).sum())


def test_rloo_is_unbiased():
    world = World(2, 3)
    got = expected_over_groups(world, 3, "rloo", "--credit.whiten_advantages", "false")
    assert_same(got, world.reward_gradient())


def test_grpo_without_the_deviation_is_unbiased_but_for_a_factor():
    world = World(2, 3)
    got = expected_over_groups(world, 3, "grpo", "--grpo.divide_by_std", "false")
    assert_same(got, world.reward_gradient() * 2 / 3)


def test_grpo_with_the_deviation():
    world = World(2, 3)
    assert_same(expected_over_groups(world, 3, "grpo"), normalised_in_groups_of_three(world))


def test_ddpo_normalises_new_captions_by_their_own_images():
    world = World()
    rows, config = torch.arange(0, 480, 30), parse("--objective", "ddpo", *PLAIN)
    images = batch(world, rows, torch.arange(2).repeat_interleave(8), world.log_probs().detach()[rows])
    statistics_kept = replace(CreditState().prompt_statistics, min_count=config.credit.prompt_min_count)
    state = CreditState(prompt_statistics=statistics_kept)
    given, state = find_objective("ddpo").credit(images, config, state)
    scores = images.scores.view(2, 8).numpy()
    by_hand = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    np.testing.assert_allclose(given.advantages[:, 0].view(2, 8), by_hand, rtol=1e-5)
    assert given.advantages.std(1).max() == 0
    assert sorted(map(len, state.prompt_statistics.scores.values())) == [8, 8], "kept for later"


# ---------------------------------------------------------------- captions without spread


def test_the_kls_price_is_known_unless_captions_have_their_own_units():
    """Raw scores are the advantages times one factor for all captions, or the KL has no price in them."""
    images, config = scored([1.0, 2.0, 3.0, 7.0])
    for divides in (False, True):
        own = replace(config, objective_settings=grpo.Settings(divide_by_std=divides))
        own = replace(own, credit=replace(config.credit, whiten_advantages=False, advantage_clip=None))
        given, _ = find_objective("grpo").credit(images, own, CreditState())
        raw = credit_metrics(given, own, 0.1)["kl_coef_raw"]
        if divides:
            assert raw is None
        else:
            np.testing.assert_allclose(given.advantages[:, 0] * raw / 0.1, [-0.5, 0.5, -2, 2], rtol=1e-6)


def scored(scores: list[float]) -> tuple[Experience, object]:
    """Two images of each caption, as grpo sees them."""
    world, count = World(), len(scores)
    rows, index = torch.arange(count), torch.arange(count // 2).repeat_interleave(2)
    images = batch(world, rows, index, world.log_probs().detach()[rows])
    settings = ("--objective", "grpo", "--rollout.samples_per_caption", "2")
    return replace(images, scores=torch.tensor(scores)), parse(*settings)


@pytest.mark.parametrize(
    "scores, kept, without",
    [
        ([1.0, 2.0, -30.0, -30.0, 5.0, 4.0], [0, 1, 4, 5], 1),
        ([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3], 0),
        ([1.0, 1.0, 3.0, 3.0], [0, 1, 2, 3], 2),  # then there is the KL only
        ([-30.0, 1.0, 1.0, -30.0], [0, 1, 2, 3], 0),
    ],
)
def test_captions_without_spread_are_left_out_and_counted(scores, kept, without):
    images, config = scored(scores)
    objective = find_objective("grpo")
    given, _ = objective.credit(images, config, CreditState())
    assert torch.equal(objective.select(given, config).tokens, images.tokens[kept])
    assert credit_metrics(given, config, 0.1)["captions_without_spread"] == without
    everything = replace(config, objective_settings=grpo.Settings(leave_out_equal=False))
    assert objective.select(given, everything) is given
