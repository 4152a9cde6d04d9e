"""How long a run with a long metrics.jsonl takes to be resumed and reported.

    python benchmarks/long_history.py [--iterations 500000]

This writes a made-up file with as many numbers in a line as a run of the built-in world. It measures, each in
a process of its own: resuming (checking the file, opening it for writing, the progress bar), 100 more
iterations with TensorBoard, and the report. Seconds are of the CPU; memory is the peak of the process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("reward/nsfw", "reward/clip_similarity", "unsafe_rate", "clip_similarity")


def write_history(path: Path, iterations: int) -> None:
    """Writes lines as a run does."""
    sys.path.insert(0, str(ROOT))
    from dalle_ppo.runs.metric_table import ITERATION_METRICS

    names = [name for name in (*ITERATION_METRICS, *PARTS) if not name.endswith("/")]
    with path.open("w") as file:
        for n in range(iterations):
            record = {"iteration": n} | {name: 1 / (1 + n % 997) for name in names} | {"images": 96 * n}
            file.write(json.dumps(record | {"iteration": n}) + "\n")


def resume(run_dir: Path, iterations: int) -> None:
    """What a resumed run does with the file before it draws anything."""
    from dalle_ppo.config.settings import Config
    from dalle_ppo.runs.metrics import METRICS_FILE, MetricsWriter, newest_metrics
    from dalle_ppo.training.progress_bar import ProgressBar

    newest_metrics(run_dir / METRICS_FILE, iterations, 1)
    earlier = newest_metrics(run_dir / METRICS_FILE, iterations)
    ProgressBar(Config(num_iterations=2 * iterations), earlier, 32, 3, shown=False, done=iterations)
    MetricsWriter(run_dir, iterations, tensorboard=False).close()


def write(run_dir: Path, iterations: int) -> None:
    """100 more iterations in an open file."""
    from dalle_ppo.runs.metrics import METRICS_FILE, MetricsWriter, newest_metrics

    record = newest_metrics(run_dir / METRICS_FILE, iterations)[-1]
    with MetricsWriter(run_dir, iterations) as writer:
        started = time.process_time()
        for n in range(100):
            writer.write(record | {"iteration": iterations + n})
        print(f"(an iteration: {10 * (time.process_time() - started):.2f} ms)", flush=True)


def report(run_dir: Path, iterations: int) -> None:
    """The page."""
    from dalle_ppo.report.page import write_report

    page = write_report(run_dir)
    print(f"(the page: {page.stat().st_size / 1e6:.2f} MB)", flush=True)


STEPS = {"resume": resume, "write": write, "report": report}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=500_000)
    parser.add_argument("--step", choices=STEPS, help="be the process that is measured")
    parser.add_argument("--run_dir", type=Path, help="default: a folder that is removed afterwards")
    args = parser.parse_args()
    if args.step:
        started = time.process_time()
        STEPS[args.step](args.run_dir, args.iterations)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {args.step} | {time.process_time() - started:.1f} | {peak:.0f} |", flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run_dir = args.run_dir or Path(folder)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_history(run_dir / "metrics.jsonl", args.iterations)
        size = (run_dir / "metrics.jsonl").stat().st_size / 1e6
        print(
            f"{args.iterations} lines, {size:.0f} MB\n\n| step | CPU seconds | MB |\n|---|---|---|",
            flush=True,
        )
        for step in STEPS:
            options = ["--step", step, "--run_dir", str(run_dir), "--iterations", str(args.iterations)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, __file__, *options], check=True, env=environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
