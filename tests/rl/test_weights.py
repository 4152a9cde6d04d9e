"""Weights of whole images, by hand and against SciPy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from dalle_ppo.rl.weights import (
    best_and_worst,
    effective_count,
    preference_loss,
    softmax_weights,
    sparse_weights,
)

SCORES = torch.tensor([0.3, -1.0, 2.0, 0.7, 1.9], dtype=torch.float64)


def test_softmax_weights_have_mean_one():
    weights = softmax_weights(SCORES, 0.2)
    np.testing.assert_allclose(weights, 5 * softmax(SCORES.numpy() / 0.2), rtol=1e-12)
    assert weights.mean().item() == pytest.approx(1.0)


def test_only_differences_of_scores_count():
    torch.testing.assert_close(softmax_weights(SCORES + 1000, 0.2), softmax_weights(SCORES, 0.2))
    assert softmax_weights(torch.tensor([-30.0, 6.0]), 1e-3).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("percentile", [0, 50, 75, 90, 99])
def test_sparse_weights_keep_what_reaches_the_percentile(percentile):
    kept = SCORES.numpy() >= np.percentile(SCORES.numpy(), percentile)
    assert sparse_weights(SCORES, percentile).tolist() == kept.astype(float).tolist()


@pytest.mark.parametrize("percentile", ["0", "10", "25", "33.3", "60", "70", "90", "99.9"])
def test_an_image_at_the_percentile_is_kept_whatever_the_rounding(percentile):
    """In fractions: of n distinct scores, those from position percentile * (n - 1) / 100 on are kept."""
    for count in range(1, 102):
        scores = torch.arange(count, dtype=torch.float32) / 7
        first = math.ceil(Fraction(percentile) * (count - 1) / 100)
        weights = sparse_weights(scores, float(percentile))
        assert weights.tolist() == [0.0] * first + [1.0] * (count - first), count


def test_equal_scores_are_all_kept():
    assert sparse_weights(torch.full((7,), 0.1), 90).tolist() == [1.0] * 7


def test_the_best_decile_of_a_hundred_is_ten():
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).double()
    weights = sparse_weights(scores, 90)
    assert weights.sum() == 10 and (scores[weights > 0] >= 90).all()


def test_best_and_worst_of_each_caption():
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, -1.0, 4.0, 4.0])
    captions = torch.tensor([7, 7, 7, 2, 2, 2, 9, 9, 9])
    assert best_and_worst(scores, captions).tolist() == [-1, 1, 0, 0, 0, 0, -1, 1, 0]


def test_groups_may_lie_anywhere():
    scores, captions = torch.tensor([1.0, 9.0, 2.0, 8.0]), torch.tensor([0, 1, 0, 1])
    assert best_and_worst(scores, captions).tolist() == [-1, 1, 1, -1]


def test_preference_loss_takes_float32_sides_with_float64_log_ratios():
    log_ratios = torch.tensor([0.5, -0.25], dtype=torch.float64)
    losses = preference_loss(log_ratios, torch.tensor([1.0, -1.0]), torch.tensor([0, 0]), beta=0.5)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.5 * 0.75))] * 2, abs=1e-15)


def test_preference_loss_by_hand():
    log_ratios, sides = torch.tensor([0.5, 1.5, -2.0, 0.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    losses = preference_loss(log_ratios, sides, torch.tensor([0, 0, 1, 1]), beta=0.5)
    by_hand = [-np.log(expit(0.5 * (0.5 - 1.5))), -np.log(expit(0.5 * (0.0 + 2.0)))]
    np.testing.assert_allclose(losses, np.repeat(by_hand, 2), rtol=1e-6)


def test_a_caption_without_a_pair_costs_nothing():
    losses = preference_loss(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.1)
    assert losses.tolist() == [0.0, 0.0]


def test_half_a_pair_is_refused():
    with pytest.raises(ValueError, match="a pair is split"):
        preference_loss(torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("weights, count", [([1, 1, 1, 1], 4), ([0, 5, 0, 0], 1), ([0, 0], 0), ([3, 1], 1.6)])
def test_effective_count(weights, count):
    assert effective_count(torch.tensor(weights, dtype=torch.float64)) == pytest.approx(count)
