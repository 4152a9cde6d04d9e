"""A trained detector's numbers, and the text that reports them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle_ppo.training.detector.calibration import Calibration, fit_calibration, log_loss
from dalle_ppo.training.detector.data import Parts
from dalle_ppo.training.detector.network import Network
from dalle_ppo.training.detector.quality import (
    THRESHOLDS,
    AtThreshold,
    Auc,
    area_under_curve,
    at_threshold,
    suggested_threshold,
)

UNSURE_THRESHOLD = 0.1
"""The reward's default."""


@dataclass(frozen=True)
class Report:
    """How good a detector is on the images held back for the test.

    Args:
        num_fit, num_validation, num_test: images in each part.
        num_unsafe: unsafe images in the test.
        auc: area under the ROC curve.
        loss_before, loss: log-loss without and with calibration, in nats.
        calibration: fitted on the validation images.
        rows: one for each threshold.
        suggested: threshold chosen on the validation images.
    """

    num_fit: int
    num_validation: int
    num_test: int
    num_unsafe: int
    auc: Auc
    loss_before: float
    loss: float
    calibration: Calibration
    rows: tuple[AtThreshold, ...]
    suggested: float

    def lines(self, file: Path) -> list[str]:
        """The report as text: the numbers, the table, and the reward's setting for the detector's file."""
        a, c = self.auc, self.calibration
        lines = [
            f"{self.num_fit} images to learn from, {self.num_validation} to stop and calibrate by, "
            f"{self.num_test} held back for the test ({self.num_unsafe} unsafe)",
            f"test: AUC {a.value:.4f} (95 % interval {a.lower:.4f} to {a.upper:.4f})",
            f"test: log-loss {self.loss:.4f}, {self.loss_before:.4f} before calibration "
            f"(logit times {c.slope:.3f} plus {c.offset:.3f})",
            "",
            "threshold  precision  recall  false positives",
        ]
        for row in self.rows:
            precision = "      -" if np.isnan(row.precision) else f"{100 * row.precision:5.1f} %"
            chosen = "  <- suggested" if row.threshold == self.suggested else ""
            lines.append(
                f"{row.threshold:9.2f}    {precision} {100 * row.recall:5.1f} %"
                f"         {100 * row.false_positive_rate:6.2f} %{chosen}"
            )
        return [*lines, "", *self._advice(file)]

    def _advice(self, file: Path) -> list[str]:
        (row,) = (row for row in self.rows if row.threshold == self.suggested)
        unsure = min(UNSURE_THRESHOLD, self.suggested)
        return [
            f"At {self.suggested:g} it misses {100 * (1 - row.recall):.1f} % of the unsafe test images and "
            f"flags {100 * row.false_positive_rate:.2f} % of the safe ones.",
            "A lower threshold misses fewer and flags more.",
            "Precision is for this mix of images: where unsafe ones are rarer, it is lower.",
            f"In the reward: {{name: nsfw, detector: {file}, unsafe_threshold: {self.suggested:g}, "
            f"unsure_threshold: {unsure:g}}}",
        ]


def calibrate_and_measure(network: Network, parts: Parts) -> Report:
    """Calibrates on the validation images and measures on the test images.

    Args:
        network: fitted on `parts.fit`.
        parts: as it was fitted with.
    """
    validation, test = parts.validation, parts.test
    logits = network.logits(validation)
    calibration = fit_calibration(logits, validation.labels)
    suggested = suggested_threshold(calibration.probability(logits), validation.unsafe)
    logits = network.logits(test)
    probability = calibration.probability(logits)
    return Report(
        num_fit=len(parts.fit),
        num_validation=len(validation),
        num_test=len(test),
        num_unsafe=int(test.unsafe.sum()),
        auc=area_under_curve(logits, test.unsafe),
        loss_before=log_loss(Calibration().probability(logits), test.labels),
        loss=log_loss(probability, test.labels),
        calibration=calibration,
        rows=tuple(at_threshold(probability, test.unsafe, threshold) for threshold in THRESHOLDS),
        suggested=suggested,
    )
