"""The report of a run that went on for long: its work and its page do not grow with the iterations."""

import json

import numpy as np

from dalle_ppo.report import plots
from dalle_ppo.report.page import write_report

ITERATIONS = 20_000


def test_curves_are_thinned_before_anything_else(tmp_path, monkeypatch):
    lengths, mean = [], plots.running_mean
    monkeypatch.setattr(plots, "running_mean", lambda values: (lengths.append(len(values)), mean(values))[1])
    record = {"reward_mean": 1.0, "kl": 2.0, "unsafe_rate": 0.5, "images": 9, "seconds": 60}
    pages = []
    for name, count in (("short", 600), ("long", ITERATIONS)):
        (tmp_path / name).mkdir()
        lines = (json.dumps(record | {"iteration": n, "kl": n / count}) + "\n" for n in range(count))
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
        pages.append(write_report(tmp_path / name).read_text())
    assert lengths and max(lengths) <= 500, "a running mean takes time as the square of the length"
    assert len(pages[1]) < 1.1 * len(pages[0])
    assert f"{ITERATIONS:,}" in pages[1] and f"{ITERATIONS:.1f} min" in pages[1]


def test_the_path_of_a_long_run_ends_where_the_run_ends():
    x, y = np.linspace(0, 10, ITERATIONS), np.linspace(5, 0, ITERATIONS)
    drawn = plots.trajectory(x, y, "a path", "KL")
    assert drawn.count("L") < 600 and "a path" in drawn
