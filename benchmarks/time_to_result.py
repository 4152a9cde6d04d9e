"""How soon the default run of two commits is done, and whether its result is as good.

    python benchmarks/time_to_result.py 65870f2 HEAD --keep runs/time_to_result
    python benchmarks/time_to_result.py HEAD~ HEAD --seeds 0 --settings num_iterations=20 --num_captions 500

Runs `python -m dalle_ppo.train` of commit A and of commit B in turn (A seed 0, B seed 0, A seed 1, ...), each
in a process of its own, from temporary worktrees and in the present environment. All runs are measured on the
same held-out captions with the same noise. Prints a table, the single runs, and a line for each of the bars
that B has to clear. With `--keep`, finished runs are reused: a killed benchmark goes on with the next run.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paired_runs import QUALITIES, Estimate, Row, all_rows

ROOT = Path(__file__).resolve().parent.parent
NOTE = """\
In brackets: 95 % intervals. Seconds and memory vary over the seeds (Student's t): the ratio is the geometric
mean of the pairs of runs with the same seed, the difference is their mean. All else is pooled over the seeds,
with intervals over captions: a caption keeps all its images, and A and B are resampled together. These
intervals speak of these seeds alone; the second table shows how far seeds differ. Training is the sum of its
iterations, evaluation lasts until evaluation.json is written, and the whole command adds start, checkpoints
and report."""


@dataclass(frozen=True)
class Unit:
    """How numbers are written: `form` of `scale` times the value, then `after`."""

    form: str
    scale: float = 1.0
    after: str = ""


UNITS = {"s": Unit(".1f"), "images": Unit(".0f"), "GB": Unit(".2f"), "share": Unit(".2f", 100, " %"),
         "points": Unit("+.2f", 100), "score": Unit(".3f"), "ratio": Unit(".3f")}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """What B has to clear: the `column` of a row lies at or below `limit`, or (if `least`) at or above it."""

    row: str
    column: str
    unit: str
    limit: float
    least: bool = False


BARS = (
    Bar("seconds", "ratio", "ratio", 0.4),
    Bar("judge_unsafe_rate", "difference", "points", 0.007),
    Bar("judge_alignment", "difference", "points", -0.01, least=True),
    Bar("judge_unrecognised_rate", "difference", "points", 0.01),
    Bar("reward_median", "difference", "score", -0.03, least=True),
    Bar("images", "b", "images", 4320),
)


# --- running


def train(tree: Path, folder: Path, arguments: list[str], threads: int) -> dict[str, float]:
    """Runs the training command with the code in `tree` and returns what it cost.

    Args:
        tree: root of a worktree.
        folder: gets `run/` and `log.txt`.
        arguments: of the command, without the run's folder; a file after `--config` is the worktree's.
        threads: of the process.

    Returns:
        The numbers of `paired_runs.COSTS`.

    Raises:
        ValueError: the command failed.
    """
    shutil.rmtree(folder / "run", ignore_errors=True)  # of a benchmark that was killed
    folder.mkdir(parents=True, exist_ok=True)
    given = [str(tree / value) if (tree / value).is_file() else value for value in arguments]
    command = ["dalle_ppo.train", "--run_dir", str(folder / "run"), *given]
    seconds, usage = run_command(tree, command, threads, folder / "log.txt")
    unit = 1 if sys.platform == "darwin" else 1024
    whole = {"seconds": seconds, "seconds_cpu": usage.ru_utime + usage.ru_stime}
    return whole | {"memory_gb": usage.ru_maxrss * unit / 1e9} | parts_of_cost(folder / "run")


def run_command(
    tree: Path, arguments: list[str], threads: int, log: Path
) -> tuple[float, resource.struct_rusage]:
    """Runs `python -m ARGUMENTS` with the code in `tree`, in the log's folder.

    Returns:
        Seconds, and what the process used.

    Raises:
        ValueError: the command failed.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    call = [sys.executable, "-m", *arguments]
    with log.open("w", encoding="utf-8") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            call, cwd=log.parent, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            # The peak starts at that of this process, which therefore must not load torch.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = "\n".join(log.read_text("utf-8").splitlines()[-20:])
        raise ValueError(f"{' '.join(call[1:])} ended with {process.returncode}:\n{end}")
    return seconds, usage


def parts_of_cost(run: Path) -> dict[str, float]:
    """Seconds of training and evaluation, and images drawn, from the files of a run that has just ended."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    evaluated = [
        (run / name).stat().st_mtime for name in ("evaluation/captions.parquet", "evaluation.json")
    ]  # the first and the last file that an evaluation writes
    return {
        "seconds_training": sum(record["seconds"] for record in metrics),
        "seconds_evaluation": evaluated[1] - evaluated[0],
        "images": metrics[-1]["images"],
    }


def finished(path: Path, identity: dict) -> dict | None:
    """The `cost.json` of a finished run; None if there is none.

    Raises:
        ValueError: it is of another commit, other settings or another number of threads.
    """
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, value in identity.items():
        if stored[name] != value:
            raise ValueError(
                f"{path}: {name} is {stored[name]}, but {value} is asked for; give another --keep folder"
            )
    return stored


@contextmanager
def worktree(commit: str, tree: Path) -> Iterator[Path]:
    """A temporary worktree of `commit` at `tree`."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run_all(args: argparse.Namespace, keep: Path, trees: Path) -> dict[str, list[Path]]:
    """Runs what has not been run, A and B in turn; the folders of side "a" and "b", in the order of seeds."""
    commits = {"a": args.a, "b": args.b}
    own = {"a": args.a_settings, "b": args.b_settings}
    folders: dict[str, list[Path]] = {"a": [], "b": []}
    for seed in args.seeds:
        for side, commit in commits.items():
            folder = keep / f"{side}_seed{seed}"
            arguments = ["--seed", str(seed), "--evaluation.seed", str(args.evaluation_seed)]
            if args.num_captions is not None:
                arguments += ["--evaluation.num_captions", str(args.num_captions)]
            for setting in [*args.settings, *own[side]]:
                name, value = setting.split("=", 1)
                arguments += [f"--{name}", value]
            identity = {"commit": commit, "arguments": arguments, "threads": args.threads}
            cost = finished(folder / "cost.json", identity)
            if cost is None:
                with worktree(commit, trees / side) as tree:
                    cost = identity | train(tree, folder, arguments, args.threads)
                # Written last and in one step: it says that the run is finished.
                (folder / "cost.new").write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
                (folder / "cost.new").replace(folder / "cost.json")
            print(f"{side.upper()} {commit[:10]} seed {seed}: {cost['seconds']:.1f} s", flush=True)
            folders[side].append(folder)
    return folders


# --- printing


def verdict(bar: Bar, estimate: Estimate) -> str:
    """Whether the whole interval clears the bar, none of it does, or neither: met, missed or open."""
    if estimate.value is None:
        return "unknown"
    sign = -1 if bar.least else 1
    known = estimate.low is not None and estimate.high is not None
    ends = [sign * end for end in ((estimate.low, estimate.high) if known else (estimate.value,))]
    if max(ends) <= sign * bar.limit:
        return "met" if known else "met (no interval)"
    if min(ends) > sign * bar.limit:
        return "missed" if known else "missed (no interval)"
    return "open (the interval reaches across the bar)"


def shown(estimate: Estimate, unit: str) -> str:
    """`value [low, high]` in a unit."""
    how = UNITS[unit]

    def number(value: float | None) -> str:
        return "?" if value is None else format(how.scale * value, how.form)

    if estimate.value is None:
        return ""
    text = number(estimate.value) + how.after
    if estimate.low == estimate.high:  # unknown, or the same in all runs
        return text
    return f"{text} [{number(estimate.low)}, {number(estimate.high)}]"


def table(rows: dict[str, Row], heads: tuple[str, str]) -> str:
    """Markdown: one line for each row."""
    lines = [f"| | {heads[0]} | {heads[1]} | B / A | B - A |", "|---|---|---|---|---|"]
    for row in rows.values():
        difference = shown(row.difference, "points" if row.unit == "share" else row.unit)
        points = " points" if row.unit == "share" else ""
        cells = [shown(row.a, row.unit), shown(row.b, row.unit), shown(row.ratio, "ratio")]
        lines.append("| " + " | ".join([row.label, *cells, difference + points]) + " |")
    return "\n".join(lines)


def single_runs(folders: dict[str, list[Path]], seeds: list[int]) -> str:
    """Markdown: B - A of each seed alone, with intervals over captions."""
    lines = ["| seed | seconds, B / A | " + " | ".join(label for label, *_ in QUALITIES.values()) + " |"]
    lines.append("|---" * (2 + len(QUALITIES)) + "|")
    for seed, a, b in zip(seeds, folders["a"], folders["b"], strict=True):
        rows = all_rows({"a": [a], "b": [b]})
        cells = [shown(rows["seconds"].ratio, "ratio")]
        for name, (_, unit, _) in QUALITIES.items():
            cells.append(shown(rows[name].difference, "points" if unit == "share" else unit))
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bar_line(bar: Bar, row: Row) -> str:
    """One line: the measured number, the bar, and whether it is cleared."""
    estimate = getattr(row, bar.column)
    what = {"ratio": "B / A of ", "difference": "B - A of ", "b": ""}[bar.column]
    limit = shown(Estimate(bar.limit), bar.unit) + (" points" if bar.unit == "points" else "")
    side = "at least" if bar.least else "at most"
    value = shown(estimate, bar.unit) or "unknown"
    return f"{what}{row.label}: {value}; {side} {limit}: {verdict(bar, estimate)}"


# --- command line


def commit_of(name: str) -> str:
    """The full hash of a commit."""
    call = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise argparse.ArgumentTypeError(f"{name} is not a commit of this repository")
    return done.stdout.strip()


def setting_of(text: str) -> str:
    """A setting as NAME=VALUE."""
    if not text.partition("=")[2]:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, such as num_iterations=20")
    return text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; commits are resolved to their hashes."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("a", type=commit_of, metavar="A", help="the commit to compare with")
    parser.add_argument("b", type=commit_of, metavar="B", help="the commit that has to clear the bars")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--evaluation_seed", type=int, default=1, help="of captions and noise, all runs alike"
    )
    parser.add_argument("--num_captions", type=int, help="held-out captions; as the commits say if not given")
    for name, who in (("settings", "both sides"), ("a_settings", "A"), ("b_settings", "B")):
        add = {"type": setting_of, "nargs": "+", "default": [], "metavar": "NAME=VALUE"}
        parser.add_argument(f"--{name}", **add, help=f"further settings of {who}")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those finished there are reused")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        keep = (args.keep or Path(temporary) / "runs").resolve()
        folders = run_all(args, keep, Path(temporary))
        rows = all_rows(folders)
        print("\n" + table(rows, (f"A, {args.a[:10]}", f"B, {args.b[:10]}")) + f"\n\n{NOTE}\n")
        print(single_runs(folders, args.seeds) + "\n")
        print("\n".join(bar_line(bar, rows[bar.row]) for bar in BARS))
    return 0


if __name__ == "__main__":
    # Being terminated must end the training, too, and remove the worktrees.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
