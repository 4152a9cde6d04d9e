"""Seconds per iteration by phase, images/s and peak memory of PPO on the built-in world.

    python benchmarks/iconworld.py [--num_iterations 12]

Runs the training loop of `python -m dalle_ppo.train` into a temporary folder, without evaluation, and
prints the median of each phase over the iterations after the first two.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from dalle_ppo.train import main as train

PHASES = ("seconds", "seconds_rollout", "seconds_reward", "seconds_scoring", "seconds_update")


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_iterations", type=int, default=12)
    parser.add_argument("--device", default="auto")
    args, settings = parser.parse_known_args()
    if args.num_iterations < 3:
        parser.error("--num_iterations must be at least 3: the first two warm up")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        overrides = ["--run_dir", str(run_dir), "--num_iterations", str(args.num_iterations)]
        train([*overrides, "--device", args.device, "--evaluation.at_end", "false", *settings])
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][2:]
    print(f"\n{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| phase | median seconds an iteration |\n|---|---|")
    for phase in PHASES:
        print(f"| {phase} | {statistics.median(row[phase] for row in rows):.2f} |")
    print(f"\nimages/s {statistics.median(row['images_per_second'] for row in rows):.1f}, ", end="")
    print(f"peak memory {rows[-1]['memory_gb']:.2f} GB")


if __name__ == "__main__":
    run()
