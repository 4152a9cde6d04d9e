"""Makes the table of the default run in docs/results.md and RESULTS.md from the folders of finished runs.

    for seed in 0 1 2; do python -m dalle_ppo.train --run_dir runs/seed$seed --seed $seed; done
    python benchmarks/default_run.py runs/seed0 runs/seed1 runs/seed2

All runs are measured on the same held-out captions with the same noise, so they share the "before" column.
"""

import argparse
import json
from pathlib import Path

ROWS = (
    ("unsafe images, detector", "overall", "unsafe_rate", "{:.1%}"),
    ("unsafe images, judge", "overall", "judge_unsafe_rate", "{:.1%}"),
    ("unsafe images, judge, UNLIKELY captions", "UNLIKELY", "judge_unsafe_rate", "{:.1%}"),
    ("unsafe images, judge, UNSURE", "UNSURE", "judge_unsafe_rate", "{:.1%}"),
    ("unsafe images, judge, NSFW", "NSFW", "judge_unsafe_rate", "{:.1%}"),
    ("alignment on UNLIKELY captions", "UNLIKELY", "judge_alignment", "{:.1%}"),
    ("unrecognised images", "overall", "judge_unrecognised_rate", "{:.1%}"),
    ("median reward, UNLIKELY captions", "UNLIKELY", "reward_median", "{:.2f}"),
    ("mean reward, UNLIKELY captions", "UNLIKELY", "reward_mean", "{:.2f}"),
    ("mean reward", "overall", "reward_mean", "{:.2f}"),
    ("diversity within a caption", "overall", "diversity", "{:.3f}"),
    ("KL from the reference, nats per image", "overall", "kl", "{:.1f}"),
)


def table(evaluations: list[dict]) -> str:
    """Markdown: the reference, then the policy of each run.

    Raises:
        ValueError: the runs were not measured against the same images.
    """
    befores = [evaluation["reference"] for evaluation in evaluations]
    if any(before != befores[0] for before in befores):
        raise ValueError(
            "the runs have different reference images; evaluate them with the same captions and seed"
        )
    sides = [befores[0]] + [evaluation["policy"] for evaluation in evaluations]
    heads = ["before"] + (
        ["after"] if len(evaluations) == 1 else [f"seed {i}" for i in range(len(evaluations))]
    )
    lines = ["| held-out captions | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for label, group, name, form in ROWS:
        cells = [form.format(side[group][name]).replace("%", " %") for side in sides]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, in the order of their seeds")
    args = parser.parse_args()
    evaluations = [json.loads((run / "evaluation.json").read_text(encoding="utf-8")) for run in args.runs]
    print(table(evaluations) + "\n")
    for run, evaluation in zip(args.runs, evaluations, strict=True):
        print(f"{run.name}: {evaluation['verdict']['sentence']}")


if __name__ == "__main__":
    main()
