"""Platt scaling: a logit's slope and offset, fitted on images that the network did not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * logit + offset); the slope is positive, so the order of images stays."""

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """float64 [N] in 0..1."""
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.offset)


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Finds the slope and offset with the least log-loss.

    Labels are pulled towards one half, by one example of each class, so that the slope stays finite if the
    logits separate the classes.
    Source: Platt, Probabilistic outputs for support vector machines (1999), section 2.2.

    Args:
        logits: [N].
        labels: [N] in 0..1.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    unsafe, safe = labels.sum(), (1 - labels).sum()
    targets = labels * (unsafe + 1) / (unsafe + 2) + (1 - labels) / (safe + 2)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = np.exp(parameters[0]), parameters[1]
        z = slope * logits + offset
        error = (expit(z) - targets) / len(z)
        gradient = np.array([np.dot(error, logits) * slope, error.sum()])
        return float(np.mean(np.logaddexp(0, z) - targets * z)), gradient

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-7, 7), (None, None)])
    return Calibration(float(np.exp(found.x[0])), float(found.x[1]))


def log_loss(probability: np.ndarray, labels: np.ndarray) -> float:
    """Mean of minus the log of the label's probability, in nats; probabilities below 1e-7 count as 1e-7.

    Args:
        probability: [N] in 0..1.
        labels: [N] in 0..1.
    """
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))
