"""What was learned: the text, the numbers beside the file, and the picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.preferences.reward_model.network import FitSettings
from dalle_ppo.preferences.reward_model.quality import (
    MORE_LABELS,
    MORE_LEARNED,
    Accuracy,
    Bin,
    CurvePoint,
    Outlook,
)


@dataclass(frozen=True)
class Report:
    """How good a reward model is.

    Args:
        answers: how many were learned from, stopped by and held out, by part.
        raters: answers of each rater.
        accuracy: on held-out captions.
        slope: factor that calibrated the scores.
        calibration: predicted against observed, on held-out captions.
        curve: accuracy against answers learned from.
        outlook: the power law; None if there is none.
        notes: what was left out, and what is odd.
        data_sha256: hash of the answers.
        settings: how it was fitted.
    """

    answers: dict[str, int]
    raters: dict[str, int]
    accuracy: Accuracy
    slope: float
    calibration: list[Bin]
    curve: list[CurvePoint]
    outlook: Outlook | None
    notes: list[str]
    data_sha256: str
    settings: FitSettings

    def lines(self) -> list[str]:
        """For people."""
        parts = ", ".join(f"{n} for {name}" for name, n in self.answers.items())
        lines = [*self.notes, f"{sum(self.answers.values())} answers: {parts}", self.accuracy.line()]
        if self.accuracy.is_chance:
            lines.append(
                "that may be chance: do not train with this model; label more, or ask raters to agree"
            )
        if self.outlook is not None:
            lines.append(
                f"{MORE_LABELS} more answers, {MORE_LEARNED} of them to learn from, would bring about "
                f"{100 * self.outlook.gain:.1f} points "
                "(an estimate, by a power law through the learning curve)"
            )
        elif any(point.accuracy >= 1 for point in self.curve):
            lines.append(
                "some models of the learning curve are right on every held-out pair, so nothing can be said "
                "about more answers"
            )
        elif self.curve:
            lines.append("the learning curve does not rise, so nothing can be said about more answers")
        return lines


def write_report(out: Path, report: Report) -> None:
    """Writes OUT.png and then OUT.json beside the model's file."""
    atomic_write(out.with_suffix(".png"), lambda path: _plot(path, report))
    atomic_write(out.with_suffix(".json"), json.dumps(asdict(report), indent=2) + "\n")


def _plot(path: Path, report: Report) -> None:
    from matplotlib.figure import Figure

    panels = [_plot_calibration, _plot_curve] if report.curve else [_plot_calibration]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes, report)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _plot_calibration(axes, report: Report) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    bins = report.calibration
    axes.scatter([b.predicted for b in bins], [b.right for b in bins], s=[10 + b.pairs for b in bins])
    axes.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="predicted confidence", ylabel="share right")
    axes.set_title("Calibration on held-out captions", fontsize=10)


def _plot_curve(axes, report: Report) -> None:
    import numpy as np

    axes.plot([p.answers for p in report.curve], [100 * p.accuracy for p in report.curve], "o")
    if report.outlook is not None:
        last = report.curve[-1].answers
        n = np.linspace(report.curve[0].answers, last + MORE_LEARNED, 100)
        law = 100 * (1 - report.outlook.error(n))
        axes.plot(n[n <= last], law[n <= last], "C0")
        axes.plot(n[n >= last], law[n >= last], "C0--", label="estimate")
        axes.legend(frameon=False)
    axes.set(xlabel="answers learned from", ylabel="held-out accuracy, %")
    axes.set_title("Learning curve", fontsize=10)
