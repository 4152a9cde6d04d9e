"""How long an evaluation of two commits takes, and whether its numbers are the same.

    python benchmarks/evaluation_speed.py 65870f2 HEAD
    python benchmarks/evaluation_speed.py 65870f2 HEAD --policy policy.safetensors

Both commits evaluate one policy on the same held-out captions with the same noise, in turn, from temporary
worktrees and in the present environment. Nothing of an earlier evaluation is left when one starts. Without
`--policy`, B trains a policy first. Prints seconds and their ratio, and how far the numbers in
`evaluation.json` differ. CPU seconds of the whole command are the main figure: other processes disturb them
less than the time that passes.
"""

import argparse
import hashlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from time_to_result import commit_of, run_command, worktree

CAPTIONS, RESULT = "evaluation/captions.parquet", "evaluation.json"
"""The first and the last file that an evaluation writes."""
SMALL = 1e-3
"""Differences of numbers below it are taken relative to it: a share of 1e-9 has no digits to compare."""


def call(tree: Path, arguments: list[str], threads: int, log: Path) -> dict[str, float]:
    """Runs `python -m ARGUMENTS` with the code in `tree`; returns CPU seconds and seconds.

    Raises:
        ValueError: it failed.
    """
    seconds, usage = run_command(tree, arguments, threads, log)
    return {"cpu": usage.ru_utime + usage.ru_stime, "command": seconds}


def train(tree: Path, run: Path, num_iterations: int, threads: int) -> Path:
    """A run of the default settings without evaluation; the folder of its checkpoint."""
    arguments = ["--run_dir", str(run), "--num_iterations", str(num_iterations)]
    call(
        tree, ["dalle_ppo.train", *arguments, "--evaluation.at_end", "false"], threads, run.parent / "log.txt"
    )
    return max((run / "checkpoints").glob("step_*"))


def put_policy(checkpoint: Path, policy: Path) -> None:
    """Replaces a checkpoint's policy, and the hashes and the size that its `state.json` records."""
    content = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    data = policy.read_bytes()
    (checkpoint / "policy.safetensors").write_bytes(data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content["files"]["policy.safetensors"] |= facts
    del content["sha256"]
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(content), encoding="utf-8")


def evaluate(tree: Path, run: Path, num_captions: int, threads: int) -> dict[str, float]:
    """Evaluates a run from nothing; CPU seconds and seconds of the command, and seconds of the evaluation."""
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    (run / RESULT).unlink(missing_ok=True)
    arguments = ["dalle_ppo.evaluate", str(run), "--num_captions", str(num_captions)]
    spent = call(tree, arguments, threads, run.parent / "log.txt")
    begun, done = ((run / name).stat().st_mtime for name in (CAPTIONS, RESULT))
    return spent | {"evaluation": done - begun}


# --- comparing


def numbers(content: object, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a JSON document, each with its path."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from numbers(value, f"{path}/{index}")
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path, float(content)


def largest_difference(a: Path, b: Path) -> tuple[float, str, int]:
    """The largest relative difference of the numbers in both files, its place, and how many there are."""
    one, other = (dict(numbers(json.loads(path.read_text(encoding="utf-8")))) for path in (a, b))
    shared = {name for name in one.keys() & other.keys() if not name.endswith("/iteration")}

    def difference(name: str) -> float:
        return abs(one[name] - other[name]) / max(abs(one[name]), abs(other[name]), SMALL)

    worst = max(shared, key=difference)
    return difference(worst), worst, len(shared)


def changed_images(a: Path, b: Path, column: str = "image/total_variation") -> tuple[int, int]:
    """How many images of all have different pixels, as far as their total variation tells."""
    values = [pq.read_table(run / "evaluation" / "images.parquet")[column].to_numpy() for run in (a, b)]
    return int((np.abs(values[0] - values[1]) > 1e-4).sum()), len(values[0])


# --- command line


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; commits are resolved to their hashes."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("a", type=commit_of, metavar="A", help="the commit to compare with")
    parser.add_argument("b", type=commit_of, metavar="B", help="the commit that should be faster")
    parser.add_argument(
        "--policy", type=Path, help="policy.safetensors of a checkpoint in the built-in world"
    )
    parser.add_argument("--num_iterations", type=int, default=20, help="of training, without --policy")
    parser.add_argument("--num_captions", type=int, default=2000, help="held-out captions, two images each")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations of each commit")
    parser.add_argument("--threads", type=int, default=1, help="of each evaluation")
    return parser.parse_args(argv)


def measured(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list], dict[str, Path]]:
    """What each evaluation took, by side, and the runs they left."""
    spent: dict[str, list[dict[str, float]]] = {"a": [], "b": []}
    runs = {side: folder / side / "run" for side in spent}
    with worktree(args.a, folder / "tree_a") as tree_a, worktree(args.b, folder / "tree_b") as tree_b:
        trees = {"a": tree_a, "b": tree_b}
        checkpoints = {}
        for side, tree in trees.items():
            runs[side].parent.mkdir(parents=True)
            length = args.num_iterations if side == "b" and args.policy is None else 1
            checkpoints[side] = train(tree, runs[side], length, args.threads)
        policy = args.policy or checkpoints["b"] / "policy.safetensors"
        for checkpoint in checkpoints.values():
            put_policy(checkpoint, policy)
        for repeat in range(args.repeats):
            for side, tree in trees.items():
                spent[side].append(evaluate(tree, runs[side], args.num_captions, args.threads))
                cost = spent[side][-1]
                print(
                    f"{side.upper()} {repeat}: {cost['cpu']:.1f} s of CPU, {cost['evaluation']:.1f} s",
                    flush=True,
                )
    return spent, runs


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        spent, runs = measured(args, Path(temporary))
        names = {"cpu": "CPU seconds of the command", "evaluation": "seconds of the evaluation"}
        print(f"\n| medians of {args.repeats} | A, {args.a[:10]} | B, {args.b[:10]} | B / A |")
        print("|---|---|---|---|")
        for key, label in names.items():
            a, b = (statistics.median(cost[key] for cost in spent[side]) for side in "ab")
            print(f"| {label} | {a:.1f} | {b:.1f} | {b / a:.3f} |")
        worst, where, count = largest_difference(runs["a"] / RESULT, runs["b"] / RESULT)
        changed, total = changed_images(runs["a"], runs["b"])
        print(f"\n{count} numbers, the largest relative difference {worst:.2g} ({where}); "
              f"{changed} of {total} images differ")  # fmt: skip
    return 0


if __name__ == "__main__":
    # Being terminated must remove the worktrees.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
