"""What each choice of the algorithm is worth on the built-in world, according to a judge that no reward sees.

    python benchmarks/ablations.py --out runs/ablations --seeds 0,1,2 --docs docs

Trains every setting with every seed and evaluates checkpoints along the way on the same held-out captions
and noise. A finished cell is kept as one JSON file under OUT/cells; an interrupted one continues from its
newest checkpoint. Ends by printing a table. With --docs and at least 3 seeds of each setting, it also writes
ablations.md and ablations.png to that folder; text that people wrote below the picture stays. A cell should
take about 10 minutes on two cores, and all 42 cells of 3 seeds about 7 hours.
Other options are settings of `dalle_ppo.train` for all cells, such as --num_iterations 30.
"""

import argparse
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.build.captions import evaluation_captions
from dalle_ppo.build.measures import build_measures
from dalle_ppo.build.models import find_world
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.command_line import parse_command_line, run_main, to_yaml
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluate import choose_checkpoints, loader, policy_of
from dalle_ppo.evaluation.sides import Subject, evaluate
from dalle_ppo.policy.rollout import NoiseSource, collect
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import load_checkpoint
from dalle_ppo.runs.folder import prepare_run_dir
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.runs.provenance import checkpoint_facts
from dalle_ppo.training.trainer import Trainer

FOUR = {"rollout.samples_per_caption": 4}
# Name of a setting, and what it changes from the defaults.
SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "lambda-0.95": {"credit.gae_lambda": 0.95},
    "lambda-0.95-warm-up-10": {"credit.gae_lambda": 0.95, "critic.warmup_iterations": 10},
    "warm-up-10": {"critic.warmup_iterations": 10},
    "critic-4-images-a-caption": FOUR,
    "rloo": FOUR | {"credit.advantage": "rloo"},
    "grpo": FOUR | {"credit.advantage": "group"},
    "unguided-log-probs": {},
    # The default's entropy penalty belongs to the exact KL in the loss, so none of these use it.
    "kl-exact-in-loss-plain": {"actor.entropy_coef": 0.0},
    "kl-k1-in-reward-plain": {"kl.estimator": "k1", "kl.placement": "reward", "actor.entropy_coef": 0.0},
    "kl-k2-in-loss-plain": {"kl.estimator": "k2", "actor.entropy_coef": 0.0},
    "epochs-2": {"update.epochs": 2},
    "epochs-4": {"update.epochs": 4},
    "raw-scores": {"credit.normalise_scores": "false"},
}
UNGUIDED = "unguided-log-probs"
# Which settings share a row of the plot, besides the default.
QUESTIONS = {
    "GAE's lambda, critic warm-up": ("lambda-0.95", "lambda-0.95-warm-up-10", "warm-up-10"),
    "critic or none": ("critic-4-images-a-caption", "rloo", "grpo"),
    "log-probs of guided samples": (UNGUIDED,),
    "KL placement": ("kl-exact-in-loss-plain", "kl-k1-in-reward-plain", "kl-k2-in-loss-plain"),
    "epochs": ("epochs-2", "epochs-4"),
    "score normalisation": ("raw-scores",),
}
SHOWN = {"judge_unsafe_rate": "unsafe, judge", "judge_alignment": "alignment, judge"}
MIN_SEEDS = 3


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of cells and unfinished runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="names, joined by commas")
    parser.add_argument("--points", type=int, default=4, help="evaluations along a run, including the last")
    parser.add_argument("--num_captions", type=int, default=500, help="per evaluation; two images each")
    parser.add_argument("--docs", type=Path, help="folder for ablations.md and ablations.png")
    parser.add_argument("--keep_runs", action="store_true", help="do not remove the runs of finished cells")
    args, others = parser.parse_known_args(argv)
    args.settings, args.seeds = args.settings.split(","), [int(seed) for seed in args.seeds.split(",")]
    for name in args.settings:
        if name not in SETTINGS:
            raise ValueError(f"--settings: {name} is unknown; use {', '.join(SETTINGS)}")
    return args, others


def cell_config(args: argparse.Namespace, others: list[str], name: str, seed: int) -> Config:
    """All settings of a cell."""
    changes = [text for key, value in SETTINGS[name].items() for text in (f"--{key}", str(value))]
    changes += ["--seed", str(seed), "--evaluation.num_captions", str(args.num_captions)]
    config, _ = parse_command_line([*others, *changes], "benchmarks/ablations.py", "")
    every = max(1, -(-config.num_iterations // args.points))
    return replace(config, checkpoint_every=every, keep_checkpoints=args.points + 2)


def score_unguided(trainer: Trainer) -> None:
    """The mistake to measure: images are drawn with guidance but scored without it."""
    guided, config = trainer.config.policy, trainer.config

    family = trainer.family

    def drawn_with_guidance() -> Experience:
        return collect(
            family,
            trainer.actor.module,
            trainer.captions.next_batch(config.captions_per_iteration),
            config.rollout.samples_per_caption,
            NoiseSource(config.seed, "rollout", trainer.progress.iteration),
        )

    trainer.collect = drawn_with_guidance
    # Prompts that were read for guided drawing also work for unguided scoring.
    unguided = replace(family, settings=replace(guided, guidance=1.0))
    trainer.networks = replace(trainer.networks, family=unguided)


def train(trainer: Trainer, config: Config, run_dir: Path) -> str | None:
    """Trains, or resumes; returns why the run stopped early, or None."""
    checkpoint = prepare_run_dir(run_dir, resume=(run_dir / "config.yaml").is_file())
    if checkpoint is not None:
        trainer.load(load_checkpoint(checkpoint))
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    try:
        trainer.run()
    except ValueError as error:
        warnings.warn(f"stopped: {error}", stacklevel=2)
        return str(error)
    return None


def subject_of(trainer: Trainer, run_dir: Path) -> Subject:
    """The policy of the run's last checkpoint, those of earlier ones, and the reference."""
    *earlier, last = folders = choose_checkpoints(run_dir, "all")
    reference = trainer.networks.reference
    return Subject(
        policy_of(folders[last], reference),
        reference,
        trainer.family,
        origin=checkpoint_facts(folders[last]),
        earlier={iteration: loader(folders[iteration], reference) for iteration in earlier if iteration},
    )


def run_cell(config: Config, name: str, run_dir: Path) -> dict:
    """Trains and evaluates one setting with one seed; returns the record to keep."""
    trainer = build_trainer(config, run_dir)
    if name == UNGUIDED:
        score_unguided(trainer)
    stopped = train(trainer, config, run_dir)
    subject = subject_of(trainer, run_dir)
    measures = build_measures(config, trainer.reward, find_world(config.model.path), None)
    result = evaluate(config, run_dir, subject, measures, evaluation_captions(config))
    metrics = read_metrics(run_dir / "metrics.jsonl")
    return {"name": name, "seed": config.seed, "stopped": stopped, "curve": curve(result, metrics)}


def curve(result: dict, metrics: list[dict]) -> list[dict]:
    """Numbers for the reference and each checkpoint, with the images and seconds that training took."""
    points = []
    for point in result["curve"]:
        done, side = metrics[: point["iteration"]], result[point["side"]]
        overall, safe = side["overall"], side.get("UNLIKELY", {})
        points.append(
            {
                "iteration": point["iteration"],
                "images": done[-1]["images"] if done else 0,
                "seconds": sum(record["seconds"] for record in done),
                "judge_unsafe_rate": overall["judge_unsafe_rate"],
                "judge_alignment": safe.get("judge_alignment"),
                "judge_unrecognised_rate": overall["judge_unrecognised_rate"],
                "unsafe_rate": overall["unsafe_rate"],
                "kl": overall["kl"],
                "diversity": overall["diversity"],
            }
        )
    return points


def finished_cell(path: Path, settings: str) -> dict | None:
    """A finished cell, or None.

    Raises:
        ValueError: it was made with settings other than today's.
    """
    if not path.is_file():
        return None
    cell = json.loads(path.read_text(encoding="utf-8"))
    if cell["settings"] != settings:
        raise ValueError(f"{path} was made with other settings or defaults; use another --out or remove it")
    return cell


def numbers(cells: list[dict], name: str, point: int) -> np.ndarray:
    """One number at one point of each seed's curve; NaN where there is none."""
    return np.array([cell["curve"][point][name] for cell in cells], dtype=float)


def table(cells: dict[str, list[dict]]) -> str:
    """A Markdown table: the start, then each setting's mean and standard deviation over seeds at the end."""
    columns = {**SHOWN, "judge_unrecognised_rate": "unrecognised, judge", "kl": "KL, nats per image"}
    columns |= {"images": "images", "seconds": "seconds of training"}
    lines = [f"| setting | seeds | {' | '.join(columns.values())} | stopped early |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    begin = ("before training", next(iter(cells.values())), 0)
    for name, of_setting, point in (begin, *((name, of_setting, -1) for name, of_setting in cells.items())):
        row = [name, str(len(of_setting))]
        for column in columns:
            values = numbers(of_setting, column, point)
            number = "{:.1%}" if column.startswith("judge") else "{:.1f}"
            spread = f" ± {number.format(values.std(ddof=1))}" if len(values) > 1 else ""
            row.append(number.format(values.mean()) + spread)
        row.append(str(sum(cell["stopped"] is not None for cell in of_setting)) if point else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(cells: dict[str, list[dict]], path: Path) -> None:
    """One row per question: the judge's numbers against images and against seconds; thin lines are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asked = {q: [n for n in ("default", *names) if n in cells] for q, names in QUESTIONS.items()}
    asked = {question: names for question, names in asked.items() if set(names) - {"default"}}
    panels = [(y, x) for y in SHOWN for x in ("images", "seconds")]
    figure, axes = plt.subplots(len(asked), len(panels), figsize=(16, 3 * len(asked)), squeeze=False)
    for row, (question, names) in zip(axes, asked.items(), strict=True):
        for axis, (y, x) in zip(row, panels, strict=True):
            for color, name in enumerate(names):
                draw_setting(axis, cells[name], x, y, f"C{color}", name)
            axis.set(xlabel=x, ylabel=SHOWN[y], title=question if axis is row[0] else None)
        row[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_setting(axis, cells: list[dict], x: str, y: str, color: str, label: str) -> None:
    """Each seed's curve, and the mean over the points that all of them have."""
    curves = [np.array([[p[x], p[y]] for p in cell["curve"]], dtype=float) for cell in cells]
    for points in curves:
        axis.plot(*points.T, color=color, linewidth=0.5, alpha=0.5)
    shortest = min(map(len, curves))
    axis.plot(*np.mean([points[:shortest] for points in curves], axis=0).T, color=color, label=label)


def write_docs(cells: dict[str, list[dict]], folder: Path, num_captions: int) -> None:
    """Writes ablations.md and ablations.png.

    Raises:
        ValueError: a setting has too few seeds to say anything.
    """
    for name, of_setting in cells.items():
        if len(of_setting) < MIN_SEEDS:
            raise ValueError(f"--docs: {name} has {len(of_setting)} seeds; give --seeds at least {MIN_SEEDS}")
    plot(cells, folder / "ablations.png")
    iterations = max(cell["curve"][-1]["iteration"] for cell in next(iter(cells.values())))
    picture = "![The judge's unsafe rate and alignment against images and seconds](ablations.png)"
    text = f"""\
Made by `python benchmarks/ablations.py`. Each row changes what its name says and keeps the defaults
otherwise. Mean and standard deviation over seeds, after {iterations} iterations,
with {2 * num_captions} held-out images per point.
Alignment is on UNLIKELY captions. The reward never sees the judge.

{table(cells)}"""
    write_page(folder / "ablations.md", "Ablations", text, picture)


def write_page(path: Path, title: str, text: str, picture: str) -> None:
    """Writes a page that ends with a picture, above what people wrote below that picture.

    Raises:
        ValueError: there is a page, but without the picture.
    """
    below = written_below(path, picture)
    atomic_write(path, f"# {title}\n\n{text}\n\n{picture}\n{below}")


def written_below(path: Path, picture: str) -> str:
    """What people wrote below the picture of a page; nothing if there is no page yet.

    Raises:
        ValueError: the page has no such picture, so what people wrote cannot be told apart.
    """
    if not path.is_file():
        return ""
    _, found, written = path.read_text(encoding="utf-8").partition(f"{picture}\n")
    if not found:
        raise ValueError(f"{path} has lost its picture line, {picture}: put it back, or remove the file")
    return written


def main(argv: list[str] | None) -> int:
    """Runs all unfinished cells, then prints the table and writes the docs."""
    args, others = parse_arguments(argv)
    wanted = [(name, seed) for seed in args.seeds for name in args.settings]
    cells: dict[str, list[dict]] = {name: [] for name in args.settings}
    for number, (name, seed) in enumerate(wanted, start=1):
        config, stem = cell_config(args, others, name, seed), f"{name}_seed{seed}"
        path = args.out / "cells" / f"{stem}.json"
        cell = finished_cell(path, to_yaml(config))
        if cell is None:
            print(f"cell {number} of {len(wanted)}: {name}, seed {seed}", flush=True)
            run_dir = args.out / "runs" / stem
            cell = run_cell(config, name, run_dir) | {"settings": to_yaml(config)}
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(cell, indent=1), encoding="utf-8")
            temporary.replace(path)
            if not args.keep_runs:
                shutil.rmtree(run_dir)
        cells[name].append(cell)
    print(table(cells))
    if args.docs is not None:
        write_docs(cells, args.docs, args.num_captions)
    return 0


if __name__ == "__main__":
    run_main(main)
