"""Checks that a change leaves a small training run, its evaluation and its pictures exactly as they were.

    python benchmarks/golden.py 65870f2

This runs the same small job with the code of COMMIT (in a temporary worktree) and with the working tree, one
after the other, and compares metrics, evaluation, checkpoints and pictures bit for bit. Times, memory,
versions and paths are ignored. Every setting that the commit's code knows is given, so later changes of
defaults do not matter; `MOVED` says what a setting is called now, and `LATER_METRICS` which numbers are new.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
THREADS = "2"
FIRST = {
    "seed": 7, "num_iterations": 3, "checkpoint_every": 3, "keep_checkpoints": 2, "device": "cpu",
    "model.path": "builtin", "model.revision": None,
    "policy.guidance": 1.5, "policy.temperature": 1.0, "policy.top_k": None, "policy.start_token": None,
    "policy.detach_unconditional": False,
    "captions.source": "builtin", "captions.column": None, "captions.tag_column": None,
    "captions.shares": {"UNLIKELY": 0.5, "UNSURE": 0.25, "NSFW": 0.25}, "captions.clean": False,
    "captions.drop_duplicates": True, "captions.min_chars": 1, "captions.max_chars": 2000,
    "captions.min_latin_share": 0.0, "captions.blocklist": None, "captions.allowlist": None,
    "captions.skip_bad_files": False, "captions.rank": 0, "captions.world_size": 1,
    "rollout.rollout_batch_size": 96, "rollout.samples_per_caption": 1, "rollout.dtype": "float32",
    "rollout.memory_gb": None,
    "clip.model": "builtin", "clip.pretrained": None,
    "reward.detector": "builtin", "reward.unsafe_threshold": 0.4, "reward.unsure_threshold": 0.1,
    "reward.unsafe_penalty": -30.0, "reward.unsure_penalty": -10.0, "reward.clean_threshold": 0.01,
    "reward.clean_bonus": 0.0, "reward.clip_weight": 20.0, "reward.extra": [], "reward.bad_result": "stop",
    "ppo.learning_rate": 3e-3, "ppo.warmup_iterations": 5, "ppo.schedule": "linear", "ppo.epochs": 1,
    "ppo.minibatch_size": 24, "ppo.microbatch_size": 24, "ppo.objective": "clip", "ppo.advantage": "gae",
    "ppo.prompt_buffer_size": 32, "ppo.prompt_min_count": 16, "ppo.recompute_log_probs": True,
    "ppo.clip_range": 0.2, "ppo.clip_range_high": None, "ppo.dual_clip": 3.0, "ppo.max_log_ratio": 20.0,
    "ppo.gamma": 1.0, "ppo.gae_lambda": 1.0, "ppo.whiten_advantages": True, "ppo.advantage_clip": 5.0,
    "ppo.normalise_scores": True, "ppo.entropy_coef": -0.215, "ppo.max_grad_norm": 1.0, "ppo.target_kl": None,
    "ppo.importance_cap": None, "ppo.weight_decay": 0.0, "ppo.adam_eps": 1e-5,
    "ppo.trainable": "cross_keys_values", "ppo.bad_step": "skip", "ppo.min_entropy": 1.0,
    "kl.kl_coef": 0.26, "kl.estimator": "exact", "kl.placement": "loss", "kl.target": None,
    "kl.horizon": 5000, "kl.error_clip": 0.2, "kl.max_kl": 100.0,
    "critic.learning_rate": 1e-3, "critic.max_grad_norm": 1.0, "critic.warmup_iterations": 0,
    "critic.value_clip": None, "critic.weight_decay": 0.0, "critic.adam_eps": 1e-5,
    "evaluation.at_end": True, "evaluation.num_captions": 200, "evaluation.shares": None,
    "evaluation.samples_per_caption": 2, "evaluation.batch_size": 200, "evaluation.seed": 12345,
    "evaluation.heldout_clip": None, "evaluation.heldout_detector": None,
}  # fmt: skip
"""Every setting of the job, with the names used in 65870f2, the first commit it ran on."""
MOVED: dict[str, str | tuple[str, object] | None] = {
    "ppo.objective": ("objective", "ppo"),
    "ppo.gamma": None, "ppo.max_log_ratio": None, "kl.error_clip": None,
    "ppo.learning_rate": "actor.learning_rate", "ppo.warmup_iterations": "actor.warmup_iterations",
    "ppo.schedule": "actor.schedule", "ppo.trainable": "actor.trainable",
    "ppo.max_grad_norm": "actor.max_grad_norm", "ppo.weight_decay": "actor.weight_decay",
    "ppo.adam_eps": "actor.adam_eps", "ppo.entropy_coef": "actor.entropy_coef",
    "ppo.min_entropy": "actor.min_entropy", "ppo.epochs": "update.epochs",
    "ppo.minibatch_size": "update.minibatch_size", "ppo.microbatch_size": "update.microbatch_size",
    "ppo.recompute_log_probs": "update.recompute_log_probs", "ppo.importance_cap": "update.importance_cap",
    "ppo.target_kl": "update.target_kl", "ppo.bad_step": "update.bad_step",
    "ppo.advantage": "credit.advantage", "ppo.gae_lambda": "credit.gae_lambda",
    "ppo.whiten_advantages": "credit.whiten_advantages", "ppo.advantage_clip": "credit.advantage_clip",
    "ppo.normalise_scores": "credit.normalise_scores", "ppo.prompt_buffer_size": "credit.prompt_buffer_size",
    "ppo.prompt_min_count": "credit.prompt_min_count",
    "reward.detector": None, "reward.unsafe_threshold": None, "reward.unsure_threshold": None,
    "reward.unsafe_penalty": None, "reward.unsure_penalty": None, "reward.clean_threshold": None,
    "reward.clean_bonus": None, "reward.clip_weight": None, "reward.extra": None,  # all in LATER_SETTINGS
}  # fmt: skip
"""The current name of a setting in `FIRST`, with its value where that was renamed; None if it is now a
constant with that value."""
LATER_SETTINGS: dict[str, object] = {
    "captions.header": None, "captions.quoting": "auto", "captions.lists": "all", "captions.tag_map": None,
    "captions.tag_thresholds": None, "captions.where": None,
    "reward.terms": [
        {"name": "nsfw", "weight": 1.0, "detector": "builtin",
         "unsafe_threshold": 0.4, "unsure_threshold": 0.1, "unsafe_penalty": -30.0, "unsure_penalty": -10.0,
         "clean_threshold": 0.01, "clean_bonus": 0.0},
        {"name": "clip_similarity", "weight": 20.0, "only_if": "nsfw <= 0.1"},
    ],
    "clip.quick_gelu": None, "clip.same_as": None,
    "evaluation.judges": [], "evaluation.suite": None,
    "reward.normalise": None,
    "update.gradient_checkpointing": False, "update.logits_chunk": None,
    "actor.optimizer": "adamw", "critic.optimizer": "adamw",
    "anchor.coef": 0.0, "anchor.num_images": 384, "anchor.minibatch_size": 24, "anchor.shares": None,
    "anchor.temperature": 1.0,
    "actor.adapter": "none", "actor.lora_rank": 8, "actor.lora_alpha": 16.0,
    "critic.adapter": "none", "critic.lora_rank": 8, "critic.lora_alpha": 16.0,
    "update.shard": "none",
    "update.dtype": "float32", "model.frozen_dtype": "float32",
    "report.hide_captions": False,
    "checkpoint_minutes": None, "keep_best": None,
}  # fmt: skip
"""Settings that came later, or that combine several of `FIRST` in one value."""
LATER_METRICS: set[str] = {
    "anchor_kl",
    "captions_without_spread",
    "effective_images",
    "images_replayed",
    "kl_full",
    "mass_outside",
    "replay_kl",
}
"""Numbers added after 65870f2, compared only where both sides have them."""
# The detector is the same one; its file has since got embeddings of drawings that bind it to its CLIP.
ASIDE = {"images_per_second", "memory_gb", "versions", "detector_sha256"}
CAPTION = "a red boat on a blue background"


def environment_of(tree: Path) -> dict[str, str]:
    """The environment in which `python -m dalle_ppo...` runs the code in `tree`."""
    return os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def known_settings(tree: Path) -> set[str]:
    """Dotted names of the settings that the code in `tree` has."""
    first = not (tree / "dalle_ppo" / "config").is_dir()  # as in 65870f2
    module = "dalle_ppo.command_line" if first else "dalle_ppo.config.command_line"
    ask = f"import json; from {module} import setting_names; print(json.dumps(setting_names()))"
    call = [sys.executable, "-c", ask]
    done = subprocess.run(call, env=environment_of(tree), capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def settings_of(tree: Path) -> dict:
    """The job's settings as the code in `tree` names them, nested; without those that came after it."""
    known = known_settings(tree)
    moved = {name: place for name, place in MOVED.items() if name not in known}
    settings = FIRST | {name: value for name, value in LATER_SETTINGS.items() if name in known}
    nested: dict = {}
    for name, value in settings.items():
        place = moved.get(name, name)
        if place is None:
            continue
        place, value = place if isinstance(place, tuple) else (place, value)
        *sections, last = place.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return nested


def run_job(tree: Path, out: Path) -> None:
    """Trains, evaluates and draws with the code in `tree`, into `out`."""
    out.mkdir(parents=True)
    config = out / "golden.yaml"
    config.write_text(yaml.safe_dump(settings_of(tree)), encoding="utf-8")
    # Numbers depend on how many threads add them up.
    threads = {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
    environment = environment_of(tree) | threads
    for arguments in (
        ["dalle_ppo.train", "--config", str(config), "--run_dir", str(out / "run")],
        ["dalle_ppo.generate", CAPTION, "--out", str(out / "drawn.png"), "--seed", "7", "--num_images", "4"],
        ["dalle_ppo.generate", CAPTION, "--out", str(out / "after.png"), "--model", str(out / "run"),
         "--compare"],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", *arguments], cwd=out, env=environment, check=True)


def differences(before: Path, after: Path) -> Iterator[str]:
    """One line for each difference between two folders of `run_job`."""
    a, b = before / "run", after / "run"
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")] for run in (a, b)]
    yield from differing(*rows, "metrics")
    yield from differing(
        *[json.loads((run / "evaluation.json").read_text("utf-8")) for run in (a, b)], "evaluation"
    )
    tables = [pq.read_table(run / "evaluation" / "images.parquet").to_pydict() for run in (a, b)]
    yield from differing(*tables, "images.parquet")
    for name in ("policy", "critic"):
        tensors = [load_file(run / "checkpoints" / "step_000003" / f"{name}.safetensors") for run in (a, b)]
        if tensors[0].keys() != tensors[1].keys():
            yield f"checkpoint: {name} has different tensors"
        for key in tensors[0].keys() & tensors[1].keys():
            if not np.array_equal(tensors[0][key], tensors[1][key]):
                yield f"checkpoint: {name} {key} differs"
    for path in sorted([*before.glob("*.png"), *a.glob("samples/*.png")]):
        other = after / path.relative_to(before)
        if not other.is_file() or not np.array_equal(*(np.asarray(Image.open(p)) for p in (path, other))):
            yield f"picture: {path.relative_to(before)} differs"


def differing(a, b, name: str) -> Iterator[str]:
    """Where two JSON values differ; keys in `ASIDE` and seconds are ignored."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key in ASIDE or key.startswith("seconds"):
                continue
            if key in a and key in b:
                yield from differing(a[key], b[key], f"{name}.{key}")
            elif key not in LATER_METRICS:
                yield f"{name}.{key}: only {'before' if key in a else 'after'}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differing(one, other, f"{name}[{i}]")
    elif a != b and not (
        a is b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
    ):
        yield f"{name}: {a!r:.60} before, {b!r:.60} after"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the commit to compare the working tree with")
    parser.add_argument("--keep", type=Path, help="folder for the commit's output; reused if it exists")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = (args.keep or Path(folder) / "before").resolve()
        if not (before / "after.png").is_file():
            tree = Path(folder) / "tree"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", str(tree), args.commit], check=True)
            try:
                run_job(tree, before)
            finally:
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)
        after = Path(folder) / "after"
        run_job(ROOT, after)
        found = list(differences(before, after))
    print("\n".join(found[:40]) or f"equal to {args.commit}: metrics, evaluation, checkpoints, pictures")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
