"""Does a long run stay as it began: memory, file handles, threads, time per iteration, files?

    python benchmarks/long_run.py [--iterations 3000] [--run_dir FOLDER]

This trains the networks of the tests in a process of its own and looks at it from outside, through /proc
(Linux). It prints the figures at tenths of the run. Seconds are of the CPU, so other programs do not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"checkpoint_every": 50, "evaluation.num_captions": 4, "seed": 3, "kl.max_kl": None}
SECONDS_BETWEEN_LOOKS = 0.5


def train(iterations: int, run_dir: Path) -> None:
    """The run that is looked at: real loop, captions, checkpoints, metrics and TensorBoard, tiny networks."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

    config = changed(TINY_CONFIG, {**SETTINGS, "num_iterations": iterations, "actor.learning_rate": 1e-4})
    tiny_trainer(config, run_dir).run()


def look(pid: int, run_dir: Path) -> dict[str, float]:
    """Figures of a running process and its files.

    Raises:
        OSError: the process has ended.
    """
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    metrics, board = run_dir / "metrics.jsonl", run_dir / "tensorboard"
    return {
        "iteration": metrics.read_bytes().count(b"\n") if metrics.is_file() else 0,
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "handles": len(os.listdir(process / "fd")),
        "cpu_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        "board_mb": sum(f.stat().st_size for f in board.glob("*")) / 1e6 if board.is_dir() else 0.0,
        "board_files": len(list(board.glob("*"))) if board.is_dir() else 0,
    }


def watch(command: list[str], run_dir: Path) -> list[dict[str, float]]:
    """Runs a command and looks at it until it ends.

    Raises:
        CalledProcessError: the command failed.
    """
    looks = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                looks.append(look(process.pid, run_dir))
            except (OSError, KeyError):  # it ends just now
                break
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return looks


def table(looks: list[dict[str, float]]) -> str:
    """Figures at tenths of the run, as a table in Markdown."""
    training = [found for found in looks if found["iteration"] > 0]
    last = training[-1]["iteration"]
    lines = [
        "| iterations | CPU ms per iteration | resident MB | threads | handles | TensorBoard MB | files |",
        "|---|---|---|---|---|---|---|",
    ]
    before = training[0]
    for tenth in range(1, 11):
        now = min(training, key=lambda found: abs(found["iteration"] - last * tenth / 10))
        done = now["iteration"] - before["iteration"]
        per_iteration = 1000 * (now["cpu_seconds"] - before["cpu_seconds"]) / max(1, done)
        lines.append(
            f"| {now['iteration']} | {per_iteration:.0f} | {now['rss_mb']:.0f} | {now['threads']} | "
            f"{now['handles']} | {now['board_mb']:.1f} | {now['board_files']} |"
        )
        before = now
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--run_dir", type=Path, help="default: a folder that is removed afterwards")
    parser.add_argument("--train", action="store_true", help="be the process that is looked at")
    args = parser.parse_args()
    if args.train:
        train(args.iterations, args.run_dir)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run_dir = args.run_dir or Path(folder) / "run"
        options = ["--train", "--iterations", str(args.iterations), "--run_dir", str(run_dir)]
        looks = watch([sys.executable, __file__, *options], run_dir)
    print(table(looks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
