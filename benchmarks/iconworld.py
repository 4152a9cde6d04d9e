"""Seconds per iteration by phase, images/s and peak memory of PPO on the built-in world.

    python benchmarks/iconworld.py [--num_iterations 12] [--record]

Runs the training loop of `python -m dalle_ppo.train` into a temporary folder, without evaluation, and
prints the median of each phase over the iterations after the first two. `--record` writes that into
RESULTS.md, replacing what is there.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.train import main as train

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "## The built-in world: `python benchmarks/iconworld.py`"
PHASES = ("seconds", "seconds_rollout", "seconds_reward", "seconds_scoring", "seconds_update")


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_iterations", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    args, settings = parser.parse_known_args()
    if args.num_iterations < 3:
        parser.error("--num_iterations must be at least 3: the first two warm up")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        overrides = ["--run_dir", str(run_dir), "--num_iterations", str(args.num_iterations)]
        train([*overrides, "--device", args.device, "--evaluation.at_end", "false", *settings])
        rows = read_metrics(run_dir / "metrics.jsonl")[2:]
    table = "\n".join(table_lines(rows))
    print(f"\n{table}")
    if args.record:
        record(RESULTS, table)


def table_lines(rows: list[dict]) -> list[str]:
    """Markdown lines that sum up the rows of a `metrics.jsonl`: medians and peak memory."""
    return [
        "| phase | median seconds per iteration |",
        "|---|---|",
        *(f"| {phase} | {statistics.median(row[phase] for row in rows):.2f} |" for phase in PHASES),
        "",
        f"{statistics.median(row['images_per_second'] for row in rows):.1f} images/s, "
        f"peak memory {rows[-1]['memory_gb']:.2f} GB",
        f"({platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{len(rows)} iterations).",
    ]


def record(path: Path, table: str) -> None:
    """Replaces the text between this benchmark's heading in `path` and the next heading."""
    text = path.read_text(encoding="utf-8")
    start = text.index(HEADING) + len(HEADING)
    end = text.index("\n#", start)
    path.write_text(f"{text[:start]}\n\n{table}\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    run()
