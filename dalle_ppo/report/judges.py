"""The report's section "Proxy against judges": the reward beside terms that it never trained on."""

from collections.abc import Mapping

from dalle_ppo.evaluation.judges import PREFIX, PROXY
from dalle_ppo.report import plots
from dalle_ppo.report.tables import EFFECT, metric_row
from dalle_ppo.runs.metric_table import METRICS, find_metric


def judge_section(evaluation: Mapping) -> dict | None:
    """A table and a chart for each judge: `{"rows", "cards", "checkpoints"}`; None without judges."""
    judged = evaluation.get("judges")
    if not judged:
        return None
    points = judged["curve"]
    return {
        "rows": _rows(evaluation, judged["better"]),
        "cards": [_card(label, points) for label in judged["better"]],
        "checkpoints": len(points) > 2,
    }


def _rows(evaluation: Mapping, better: Mapping[str, str]) -> list[dict]:
    """The reward and every judge, each followed by its parts; only a judge's value has a good direction."""
    sides = [evaluation[side]["overall"] for side in ("reference", "policy")]
    changes = evaluation["differences"]["overall"]
    rows = [metric_row(METRICS[PROXY], *sides, changes[PROXY]) | {"kind": "proxy"}]
    for label, direction in better.items():
        parts = [name for name in sides[1] if name.startswith(f"{PREFIX}{label}/")]
        for name in (PREFIX + label, *parts):
            metric = find_metric(name)
            row = metric_row(metric, *sides, changes.get(name) or {})
            own = name == PREFIX + label
            rows.append(row | {"mood": _mood(changes[name], direction) if own else "", "kind": "judge"})
    return rows


def _mood(change: Mapping, better: str) -> str:
    low, high = change.get("low"), change.get("high")
    if low is None or low <= 0 <= high:
        return ""
    return "good" if (low > 0) == (better == "up") else "bad"


def _card(label: str, points: list[Mapping]) -> dict:
    """How far proxy and judge moved from the reference, over the evaluated checkpoints."""
    lines = []
    for style, name in (("reference", PROXY), ("policy", PREFIX + label)):
        shifts = [point[name] for point in points]
        bounds = [None if s["low"] is None else (s["low"], s["high"]) for s in shifts]
        lines.append((style, [s["shift"] for s in shifts], bounds))
    title = f"Reward and judge {label} over checkpoints"
    svg = plots.checkpoint_lines([point["iteration"] for point in points], lines, title)
    last = points[-1][PREFIX + label]["shift"]
    return {"title": label, "last": EFFECT.text(last, sign=True), "svg": svg}
