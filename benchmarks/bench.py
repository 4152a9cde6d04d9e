"""Objectives side by side in the built-in world: which learns most from as many images, or in as much time.

    python benchmarks/bench.py --out runs/bench --docs docs

Two tasks: `safety` is the default reward, `jpeg` makes images that compress well, about which captions say
nothing. First every objective gets the same learning rates with seed 100 and `--search_seconds` of training
each; the rate with the highest mean reward is kept. Then every seed of `--seeds` is trained for `--seconds`
with a constant rate, and evaluated along the way on the same held-out captions and noise. A judge that no
reward sees tells what was gained. The reference and the best of 4 of its images stand beside.

Training time is processor time divided by threads, so that other work on the machine does not count. A
finished cell is one JSON file under OUT/cells; a run that was interrupted goes on with the next cell. All
cells at the defaults take about 5 hours on one core. With --docs the tables and the plot go to that folder as
bench.md and bench.png; text that people wrote below the picture stays.
"""

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from ablations import finished_cell, subject_of, write_page

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.build.captions import evaluation_captions
from dalle_ppo.build.measures import build_measures
from dalle_ppo.build.models import find_world
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.command_line import parse_command_line, run_main, to_yaml
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.baselines import parse_baselines
from dalle_ppo.evaluation.sides import evaluate
from dalle_ppo.runs.folder import prepare_run_dir
from dalle_ppo.runs.metrics import MetricsWriter
from dalle_ppo.training.trainer import Trainer

OBJECTIVES = ("ppo", "rloo", "grpo", "rwr", "dpok", "online_dpo")
TASKS: dict[str, list[str]] = {
    "safety": [],
    "jpeg": ["--reward.terms", "[{name: jpeg_size, task: compressible}]"],
}
RATES = (1e-3, 3e-3, 1e-2)
SEARCH_SEED = 100
NUMBERS = ("reward_mean", "judge_unsafe_rate", "judge_alignment", "kl", "diversity")
BEST_OF = "best_of_4"


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of cells and unfinished runs")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES), help="names, joined by commas")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, joined by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--seconds", type=float, default=150.0, help="of training per cell")
    parser.add_argument("--search_seconds", type=float, default=60.0, help="of training per learning rate")
    parser.add_argument("--points", type=int, default=4, help="evaluations along a run, including the last")
    parser.add_argument("--num_captions", type=int, default=500, help="per evaluation; two images each")
    parser.add_argument("--docs", type=Path, help="folder for bench.md and bench.png")
    args, others = parser.parse_known_args(argv)
    args.objectives, args.tasks = args.objectives.split(","), args.tasks.split(",")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    for name in args.tasks:
        if name not in TASKS:
            raise ValueError(f"--tasks: {name} is unknown; use {', '.join(TASKS)}")
    return args, others


def cell_config(
    args: argparse.Namespace, others: list[str], task: str, objective: str, rate: float, seed: int
) -> Config:
    """All settings of a cell. Only `num_iterations` has no meaning: time ends a run."""
    argv = ["--objective", objective, *TASKS[task], "--actor.learning_rate", str(rate), "--seed", str(seed)]
    argv += ["--actor.schedule", "constant", "--num_iterations", "100000"]
    argv += ["--keep_checkpoints", str(args.points + 1), "--evaluation.num_captions", str(args.num_captions)]
    if seed != SEARCH_SEED:
        argv += ["--evaluation.suite", "iconworld"]
    config, _ = parse_command_line([*argv, *others], "benchmarks/bench.py", "")
    return config


def train_for(trainer: Trainer, seconds: float, points: int) -> tuple[list[dict], str]:
    """Trains until the time is up or the policy collapses, with a checkpoint at each point.

    Returns:
        Every iteration's numbers, and how it collapsed; "" if it did not.
    """
    passed, saved, done = 0.0, 0, []
    with MetricsWriter(trainer.run_dir, 0) as writer:
        while passed < seconds:
            begin = time.process_time()
            try:
                metrics = trainer.iterate(writer)
            except ValueError as error:
                if "collapsed" not in str(error):
                    raise
                trainer.save()
                return done, str(error).partition(";")[0]
            passed += (time.process_time() - begin) / torch.get_num_threads()
            writer.write(metrics)
            done.append({"images": metrics["images"], "seconds": passed})
            due = min(points, int(passed / seconds * points))
            if due > saved:
                trainer.save()
                saved = due
    return done, ""


def run_cell(config: Config, run_dir: Path, seconds: float, points: int, best_of: bool) -> dict:
    """Trains and evaluates one cell, and the reference's best of 4 if asked; returns the record to keep."""
    prepare_run_dir(run_dir, resume=False)
    trainer = build_trainer(config, run_dir)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    done, collapsed = train_for(trainer, seconds, points)
    subject = subject_of(trainer, run_dir)
    measures = build_measures(config, trainer.reward, find_world(config.model.path), None)
    captions = evaluation_captions(config)
    baselines = parse_baselines(BEST_OF) if best_of else []
    result = evaluate(config, run_dir, subject, measures, captions, baselines=baselines)
    best = side_numbers(result[BEST_OF]) if best_of else None
    return {"curve": curve(result, done), BEST_OF: best, "collapsed": collapsed}


def side_numbers(side: dict) -> dict:
    """The numbers of a side that the tables show."""
    overall, safe = side["overall"], side.get("UNLIKELY", {})
    return {name: (safe if name == "judge_alignment" else overall).get(name) for name in NUMBERS}


def curve(result: dict, done: list[dict]) -> list[dict]:
    """Numbers of the reference and each checkpoint, with the images and seconds that training took."""
    points = []
    for point in result["curve"]:
        cost = done[point["iteration"] - 1] if point["iteration"] else {"images": 0, "seconds": 0.0}
        points.append({**cost, **side_numbers(result[point["side"]])})
    for point, side in ((points[0], "reference"), (points[-1], "policy")):
        point["suite"] = result["suite"]["tasks"]["overall"][side]["score"] if "suite" in result else None
    return points


def cell(args: argparse.Namespace, others: list[str], key: tuple[str, str, float, int]) -> dict:
    """A finished cell from disk, or a new one."""
    task, objective, rate, seed = key
    config = cell_config(args, others, *key)
    search = seed == SEARCH_SEED
    seconds, points = (args.search_seconds, 1) if search else (args.seconds, args.points)
    stem = f"{task}_{objective}_{rate:g}_seed{seed}_{seconds:g}s"
    path, settings = args.out / "cells" / f"{stem}.json", to_yaml(config)
    kept = finished_cell(path, settings)
    if kept is None:
        print(f"{stem}", flush=True)
        run_dir = args.out / "runs" / stem
        shutil.rmtree(run_dir, ignore_errors=True)
        # The reference is the same in all cells of a task, so the first one is enough.
        first = objective == args.objectives[0] and seed == args.seeds[0]
        kept = run_cell(config, run_dir, seconds, points, first) | {"settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(kept, indent=1))
        shutil.rmtree(run_dir)
    return kept


def best_rate(args: argparse.Namespace, others: list[str], task: str, objective: str) -> float:
    """The learning rate with the highest mean reward after `--search_seconds`, and without a collapse."""
    found = {rate: cell(args, others, (task, objective, rate, SEARCH_SEED)) for rate in RATES}
    sound = [rate for rate in RATES if not found[rate].get("collapsed")] or RATES
    return max(sound, key=lambda rate: found[rate]["curve"][-1]["reward_mean"])


def at(points: list[dict], axis: str, place: float, name: str) -> float:
    """A number of a curve where it has cost `place` images or seconds, interpolated; NaN if unknown."""
    known = [(p[axis], p[name]) for p in points if p[name] is not None]
    if not known:  # diversity, where no reward term reads CLIP
        return math.nan
    x, y = zip(*known, strict=True)
    return float(np.interp(place, x, y))


def table(cells: dict[str, list[dict]], axis: str) -> str:
    """Means and standard deviations over seeds, where all objectives have cost as much on this axis."""
    every = [c for of_objective in cells.values() for c in of_objective]
    sound = [c for c in every if not c.get("collapsed")] or every
    place = min(c["curve"][-1][axis] for c in sound)
    heads = ("reward", "unsafe, judge", "alignment, judge", "KL, nats per image", "diversity")
    unit = f"{place:.0f} {'images' if axis == 'images' else 'seconds'}"
    lines = [f"| after {unit} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    any_cells = next(iter(cells.values()))
    for label, side in (
        ("reference", [c["curve"][0] for c in any_cells]),
        ("its best of 4", [c[BEST_OF] for c in any_cells if c[BEST_OF]]),
    ):
        if side:
            lines.append(row(label, [[s[name] for s in side] for name in NUMBERS]))
    for objective, of_objective in cells.items():
        values = [[at(c["curve"], axis, place, name) for c in of_objective] for name in NUMBERS]
        collapsed = sum(bool(c.get("collapsed")) for c in of_objective)
        note = f", {collapsed} of {len(of_objective)} collapsed" if collapsed else ""
        lines.append(row(f"`{objective}`{note}", values))
    return "\n".join(lines)


def row(label: str, values: list[list[float]]) -> str:
    """A row of the table: mean and, with several seeds, standard deviation of each number."""
    texts = []
    for name, of_name in zip(NUMBERS, values, strict=True):
        numbers = np.array(of_name, dtype=float)
        if np.isnan(numbers).any():
            texts.append("")
            continue
        form = "{:.1%}" if name.startswith("judge") else "{:.2f}"
        spread = f" ± {form.format(numbers.std(ddof=1))}" if len(numbers) > 1 else ""
        texts.append(form.format(numbers.mean()) + spread)
    return f"| {label} | {' | '.join(texts)} |"


def costs(cells: dict[str, list[dict]], rates: dict[str, float]) -> str:
    """Learning rate, images per second and final suite score of each objective."""
    lines = ["| objective | learning rate | images per second | suite, judge |", "|---|---|---|---|"]
    for objective, of_objective in cells.items():
        ends = [c["curve"][-1] for c in of_objective]
        speed = np.mean([end["images"] / end["seconds"] for end in ends])
        suite = np.mean([end["suite"] for end in ends])
        lines.append(f"| `{objective}` | {rates[objective]:g} | {speed:.1f} | {suite:.1%} |")
    reference = np.mean([c["curve"][0]["suite"] for of_objective in cells.values() for c in of_objective])
    return "\n".join([*lines, f"| reference | | | {reference:.1%} |"])


def plot(found: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """For each task: reward against images, against seconds and against KL; the judge's unsafe rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("images", "reward_mean"), ("seconds", "reward_mean"), ("kl", "reward_mean")]
    panels.append(("images", "judge_unsafe_rate"))
    figure, axes = plt.subplots(len(found), len(panels), figsize=(16, 4 * len(found)), squeeze=False)
    for of_task, (task, cells) in zip(axes, found.items(), strict=True):
        for axis, (x, y) in zip(of_task, panels, strict=True):
            for color, (objective, of_objective) in enumerate(cells.items()):
                for number, kept in enumerate(of_objective):
                    points = np.array([[p[x], p[y]] for p in kept["curve"]], dtype=float)
                    label = None if number else objective
                    axis.plot(*points.T, color=f"C{color}", marker=".", linewidth=1, label=label)
            axis.set(xlabel=x, ylabel=y, title=task)
            if x == "kl":
                axis.set_xscale("symlog", linthresh=10)  # a policy that collapses is far away
                axis.set_xticks([0, 5, 10, 100], ["0", "5", "10", "100"])
        of_task[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def write_docs(text: str, found: dict[str, dict[str, list[dict]]], folder: Path) -> None:
    """Writes bench.png, and bench.md above the text that is there below the picture."""
    plot(found, folder / "bench.png")
    picture = "![Reward and unsafe rate against images, seconds and KL](bench.png)"
    write_page(folder / "bench.md", "Objectives compared", text, picture)


def main(argv: list[str] | None) -> int:
    """Runs all unfinished cells, then prints the tables and writes the docs."""
    args, others = parse_arguments(argv)
    found: dict[str, dict[str, list[dict]]] = defaultdict(dict)
    rates_tried = ", ".join(f"{rate:g}" for rate in RATES)
    parts = [
        f"Made by `python benchmarks/bench.py`: {args.seconds:g} s of training with a constant rate,\n"
        f"{len(args.seeds)} seed(s), {2 * args.num_captions} held-out images per point. The learning rate is "
        f"the best\nof {rates_tried} after {args.search_seconds:g} s with another seed."
    ]
    for task in args.tasks:
        rates = {}
        for objective in args.objectives:
            rates[objective] = best_rate(args, others, task, objective)
            keys = [(task, objective, rates[objective], seed) for seed in args.seeds]
            found[task][objective] = [cell(args, others, key) for key in keys]
        tables = [table(found[task], axis) for axis in ("images", "seconds")]
        parts += [f"## {task}", *tables, costs(found[task], rates)]
    text = "\n\n".join(parts)
    print(text)
    if args.docs is not None:
        write_docs(text, found, args.docs)
    return 0


if __name__ == "__main__":
    run_main(main)
