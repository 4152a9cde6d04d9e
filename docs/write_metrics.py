"""Writes the tables of docs/metrics.md from `dalle_ppo.runs.metric_table`: python docs/write_metrics.py"""

import sys
from pathlib import Path

from dalle_ppo.runs.metric_table import SECTIONS, Metric

PAGE = Path(__file__).parent / "metrics.md"
BEGIN, END = "<!-- tables: written by docs/write_metrics.py -->", "<!-- end of tables -->"
HEADER = "| name | meaning | unit | better | of |\n|---|---|---|---|---|"


def tables() -> str:
    """A Markdown table for each section."""
    parts = [
        f"### {title}\n\n{HEADER}\n" + "\n".join(map(row, metrics)) for title, metrics in SECTIONS.items()
    ]
    return "\n\n".join(parts)


def row(metric: Metric) -> str:
    """One line of a table."""
    return f"| `{metric.name}` | {metric.definition} | {metric.unit.name} | {metric.better} | {metric.of} |"


def with_tables(page: str) -> str:
    """The page with today's tables between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
