"""What was learned: the text, the numbers beside the file, and the picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.preferences.reward_model.network import FitSettings
from dalle_ppo.preferences.reward_model.quality import MORE_LABELS, Accuracy, Bin, CurvePoint, Outlook


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
                f"{MORE_LABELS} more answers would bring about {100 * self.outlook.gain:.1f} points "
                "(an estimate, by a power law through the learning curve)"
            )
        elif self.curve:
            lines.append("the learning curve does not rise, so nothing can be said about more answers")
        return lines


def write_report(out: Path, report: Report) -> None:
    """Writes OUT.json and OUT.png beside the model's file."""
    atomic_write(out.with_suffix(".json"), json.dumps(asdict(report), indent=2) + "\n")
    atomic_write(out.with_suffix(".png"), lambda path: _plot(path, report))


def _plot(path: Path, report: Report) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    bins = report.calibration
    left.scatter([b.predicted for b in bins], [b.right for b in bins], s=[10 + b.pairs for b in bins])
    left.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="predicted confidence", ylabel="share right")
    left.set_title("Calibration on held-out captions", fontsize=10)
    right.plot([p.answers for p in report.curve], [100 * p.accuracy for p in report.curve], "o")
    if report.outlook is not None:
        last = report.curve[-1].answers
        n = np.linspace(report.curve[0].answers, last + MORE_LABELS, 100)
        law = 100 * (1 - report.outlook.error(n))
        right.plot(n[n <= last], law[n <= last], "C0")
        right.plot(n[n >= last], law[n >= last], "C0--", label="estimate")
        right.legend(frameon=False)
    right.set(xlabel="answers learned from", ylabel="held-out accuracy, %")
    right.set_title("Learning curve", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
