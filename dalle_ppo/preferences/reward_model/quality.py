"""How good a reward model is on held-out captions, and what more labels would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import curve_fit, minimize_scalar

from dalle_ppo.evaluation.intervals import rate_bounds
from dalle_ppo.preferences.reward_model.data import SHARES, Rankings
from dalle_ppo.preferences.reward_model.network import Ensemble, FitSettings, fit

BINS = np.linspace(0.5, 1, 6)
CURVE_SHARES = (0.15, 0.25, 0.4, 0.65, 1.0)
REPEATS = 3
MORE_LABELS = 200
MORE_LEARNED = round(SHARES["fit"] * MORE_LABELS)
"""Of these a model learns; the others go to validation and test."""


@dataclass(frozen=True)
class Accuracy:
    """The share of decided pairs whose better picture scores higher.

    Args:
        value: in 0..1; an equal score counts half.
        low, high: 95 % interval, over captions.
        pairs, captions: how many were held out.
    """

    value: float
    low: float
    high: float
    pairs: int
    captions: int

    @property
    def is_chance(self) -> bool:
        """Whether a coin might do as well."""
        return self.low <= 0.5

    def line(self) -> str:
        """For people."""
        return (
            f"{self.value:.1%} of {self.pairs} held-out pairs right (95 % interval {self.low:.1%} to "
            f"{self.high:.1%}, {self.captions} captions)"
        )


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy of models that learned from `answers` answers, in 0..1, a mean over `REPEATS`."""

    answers: int
    accuracy: float


@dataclass(frozen=True)
class Outlook:
    """A power law of the error in the number of answers learned from: `floor + scale * answers ** -power`.

    Args:
        floor, scale, power: fitted.
        gain: accuracy that `MORE_LABELS` more answers would bring, by this law; an estimate.
    """

    floor: float
    scale: float
    power: float
    gain: float

    def error(self, answers: np.ndarray) -> np.ndarray:
        """The error after learning from so many answers."""
        return self.floor + self.scale * np.asarray(answers, dtype=float) ** -self.power


@dataclass(frozen=True)
class Bin:
    """Pairs whose better picture was predicted with about the same confidence."""

    predicted: float
    right: float
    pairs: int


@torch.no_grad()
def margins(ensemble: Ensemble, rankings: Rankings) -> tuple[np.ndarray, np.ndarray]:
    """Score of the better picture minus that of the worse one, float64 [Q], and each pair's ranking."""
    scores = ensemble(rankings.features).mean(dim=1).double().numpy()
    winner, loser, ranking = rankings.pairs()
    return scores[winner] - scores[loser], ranking


def accuracy_of(margin: np.ndarray, captions: Sequence[str]) -> Accuracy:
    """The accuracy of predictions.

    Args:
        margin: predicted advantage of the better picture of each decided pair, [Q].
        captions: the pairs' captions, [Q]; pairs of one caption are not independent.
    """
    flags = (margin > 0) + 0.5 * (margin == 0)
    _, caption = np.unique(np.asarray(captions), return_inverse=True)
    low, high = rate_bounds(flags, caption) or (0.0, 1.0)
    return Accuracy(float(flags.mean()), low, high, len(flags), len(set(captions)))


def accuracy(ensemble: Ensemble, rankings: Rankings) -> Accuracy:
    """The accuracy of an ensemble's mean score on rankings."""
    margin, ranking = margins(ensemble, rankings)
    return accuracy_of(margin, [rankings.captions[i] for i in ranking])


def slope_of(margin: np.ndarray) -> float:
    """The factor of the scores that makes their probabilities fit, at least 0.05 and at most 20.

    Args:
        margin: of held-out pairs that the model did not learn from, [Q].
    """

    def loss(log_slope: float) -> float:
        return float(np.logaddexp(0, -np.exp(log_slope) * margin).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibration(margin: np.ndarray) -> list[Bin]:
    """Predicted and observed share of right predictions, by confidence; empty bins are left out.

    Args:
        margin: calibrated, of held-out pairs, [Q].
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), margin > 0
    which = np.clip(np.digitize(confidence, BINS) - 1, 0, len(BINS) - 2)
    return [
        Bin(float(confidence[which == b].mean()), float(right[which == b].mean()), int((which == b).sum()))
        for b in range(len(BINS) - 1)
        if (which == b).any()
    ]


def learning_curve(parts: dict[str, Rankings], settings: FitSettings) -> list[CurvePoint]:
    """Held-out accuracy of smaller ensembles that learn from a part of the captions."""
    rng, learned, points = np.random.default_rng(settings.seed), parts["fit"], []
    captions = sorted(set(learned.captions))
    orders = [rng.permutation(len(captions)) for _ in range(REPEATS)]
    for share in CURVE_SHARES:
        found = []
        for seed, order in enumerate(orders):
            chosen = {captions[i] for i in order[: max(2, round(share * len(captions)))]}
            rows = [i for i, caption in enumerate(learned.captions) if caption in chosen]
            small = replace(settings, members=min(3, settings.members), seed=settings.seed + seed)
            ensemble = fit(parts | {"fit": learned.rows(rows)}, small)
            found.append((len(rows), accuracy(ensemble, parts["test"]).value))
        answers, values = np.mean(found, axis=0)
        points.append(CurvePoint(round(answers), float(values)))
    return points


def outlook(points: Sequence[CurvePoint]) -> Outlook | None:
    """Fits the power law to a learning curve; None if it does not fall, touches 0 or cannot be fitted.

    Source: Hestness et al. 2017, https://arxiv.org/abs/1712.00409, for the form.
    """
    answers = np.array([point.answers for point in points], dtype=float)
    errors = np.array([1 - point.accuracy for point in points])
    if len(set(answers)) < 4 or errors[-1] >= errors[0] or errors.min() <= 0:
        return None
    try:
        (floor, scale, power), _ = curve_fit(
            lambda n, c, a, b: c + a * n**-b,
            answers,
            errors,
            p0=(errors.min() / 2, errors[0], 0.5),
            bounds=((0, 0, 0.1), (errors.min(), 50, 1)),
        )
    except (RuntimeError, ValueError):
        return None
    law = Outlook(float(floor), float(scale), float(power), 0.0)
    now, later = law.error(answers[-1]), law.error(answers[-1] + MORE_LEARNED)
    return replace(law, gain=float(now - later))
