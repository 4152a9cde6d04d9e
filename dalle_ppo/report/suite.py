"""The report's table of a suite: the score of each task, before and after."""

from collections.abc import Mapping

from dalle_ppo.evaluation.suite import OVERALL
from dalle_ppo.evaluation.verdict import SIGN_LEVEL
from dalle_ppo.runs.metric_table import Unit

SCORE = Unit("share", 1, percent=True)


def suite_table(evaluation: Mapping) -> dict | None:
    """`{"name", "rows": [...]}`; None if no suite was drawn."""
    suite = evaluation.get("suite")
    if not suite:
        return None
    return {"name": suite["name"], "rows": [_row(task, entry) for task, entry in suite["tasks"].items()]}


def _row(task: str, entry: Mapping) -> dict:
    cells = {
        side: {"text": SCORE.text(entry[side]["score"]), "interval": SCORE.interval(entry[side]["interval"])}
        for side in ("reference", "policy", "ceiling")
    }
    mood = ""
    if entry["sign_p"] <= SIGN_LEVEL:
        mood = "good" if entry["difference"] > 0 else "bad"
    label = "All tasks" if task == OVERALL else task.capitalize()
    change = SCORE.text(entry["difference"], sign=True)
    return {"label": label, "num": entry["num"], **cells, "change": change, "mood": mood}
