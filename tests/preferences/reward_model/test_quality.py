"""Accuracy, calibration and outlook, on numbers whose answers are known."""

import numpy as np
import pytest

from dalle_ppo.preferences.reward_model.quality import (
    CurvePoint,
    accuracy_of,
    calibration,
    outlook,
    slope_of,
)


def test_accuracy_counts_equal_scores_half():
    found = accuracy_of(np.array([1.0, -1.0, 0.0, 2.0]), ["a", "b", "c", "d"])
    assert (found.value, found.pairs, found.captions) == (0.625, 4, 4)
    assert found.low < 0.625 < found.high and found.is_chance


def test_pairs_of_one_caption_are_no_independent_witnesses():
    right = np.array([1.0] * 80 + [-1.0] * 20)
    alone = accuracy_of(right, [str(i) for i in range(100)])
    grouped = accuracy_of(right, [str(i // 10) for i in range(100)])
    assert grouped.value == alone.value and grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_slope_makes_probabilities_fit(true):
    """Outcomes are drawn with the odds exp(true * margin)."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=20_000)
    won = rng.random(20_000) < 1 / (1 + np.exp(-true * predicted))
    assert slope_of(np.where(won, predicted, -predicted)) == pytest.approx(true, rel=0.06)


def test_bins_show_the_observed_share():
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(scale=2, size=20_000))
    wins = rng.random(20_000) < 1 / (1 + np.exp(-margin))
    bins = calibration(np.where(wins, margin, -margin))
    assert sum(b.pairs for b in bins) == 20_000 and len(bins) == 5
    assert all(b.right == pytest.approx(b.predicted, abs=0.03) for b in bins)


def test_the_outlook_recovers_a_power_law():
    points = [CurvePoint(n, 1 - (0.1 + 2 * n**-0.5)) for n in (60, 100, 160, 260, 400)]
    found = outlook(points)
    assert (found.floor, found.power) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.5, abs=0.05))
    # Of 200 more answers, 65 % are learned from; the others validate and test.
    assert found.gain == pytest.approx(2 * 400**-0.5 - 2 * 530**-0.5, abs=1e-3)


def test_without_progress_there_is_no_outlook():
    assert outlook([CurvePoint(n, 0.5) for n in (60, 100, 160, 260)]) is None


def test_a_curve_that_touches_100_percent_has_no_outlook():
    accuracies = [0.80, 0.90, 1.0, 0.95, 0.933]
    assert outlook([CurvePoint(100 * n + 100, value) for n, value in enumerate(accuracies)]) is None
