"""Fine-tunes a text-to-image model with PPO: `python -m dalle_ppo.train`."""

import dataclasses
import sys
from datetime import datetime
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.config.command_line import load_config, parse_command_line, run_main, to_dict, to_yaml
from dalle_ppo.config.settings import Config

DESCRIPTION = """Fine-tunes a text-to-image model with token-level PPO, evaluates it against the model it
started from, and writes a folder with checkpoints, metrics and report.html. Without arguments it trains the
built-in world's model on this machine, in minutes."""
FLAGS = {
    "resume": "continue the run in run_dir from its newest checkpoint",
    "overwrite": "replace the run in run_dir",
    "dry_run": "check everything, predict disk space and memory, and stop before training; writes nothing",
}


def main(argv: list[str] | None) -> int:
    """Trains, evaluates and writes the report."""
    config, flags = parse_command_line(argv, "python -m dalle_ppo.train", DESCRIPTION, FLAGS)
    if config.run_dir is None:
        if flags["resume"]:
            raise ValueError("--resume needs --run_dir, the folder of the run to continue")
        config = dataclasses.replace(config, run_dir=f"runs/{datetime.now():%Y-%m-%d_%H%M%S}")
    run_dir = Path(config.run_dir)
    if flags["resume"] and (run_dir / "config.yaml").is_file():
        config, flags = resumed_settings(run_dir, sys.argv[1:] if argv is None else argv)

    from dalle_ppo.build.captions import draw_settings, evaluation_captions, say_what_is_there
    from dalle_ppo.build.judges import try_judges
    from dalle_ppo.build.measures import build_measures
    from dalle_ppo.build.models import check_start, choose_device, find_world
    from dalle_ppo.build.trainer import build_trainer
    from dalle_ppo.build.trial import try_reward
    from dalle_ppo.evaluation.heldout import load_heldout
    from dalle_ppo.runs.folder import check_run_dir, sole_writer

    # All settings are checked before the folder is touched.
    check_run_dir(run_dir, flags["resume"], flags["overwrite"])
    check_start(config.model.path, run_dir)
    trainer = build_trainer(config, run_dir)
    memory_plan = trainer.memory_plan()
    config = trainer.config  # with the commit of the weights if they came from the hub
    tried = try_reward(trainer)
    captions, measures = [], None
    if config.evaluation.at_end:
        captions, e = evaluation_captions(config), config.evaluation
        device = choose_device(config.device)
        heldout = load_heldout(e.heldout_clip, e.heldout_detector, device)
        world = find_world(config.model.path)
        measures = build_measures(config, trainer.reward, world, heldout, device)
        try_judges(trainer, measures.judges)
    if flags["dry_run"]:
        dry(trainer, measures, tried, flags["resume"])
        return 0
    check_run_dir(run_dir, flags["resume"], flags["overwrite"])  # loading may have taken minutes
    with sole_writer(run_dir):
        prepare(trainer, flags)
        say_what_is_there(trainer.captions.contents, draw_settings(config))
        print(plan(config), flush=True)
        print(memory_plan, flush=True)
        print(tried, flush=True)
        trainer.run()
        if trainer.progress.captions_truncated:
            print(truncation(trainer.progress.captions_truncated, trainer.family.text_token_count))
        if config.evaluation.at_end:
            finish(trainer, captions, measures)
    return 0


def dry(trainer, measures, tried: str, resume: bool) -> None:
    """Prints what the run would do and need.

    Raises:
        ValueError: something does not fit, such as the checkpoint to resume from.
    """
    from dalle_ppo.build.captions import draw_settings, say_what_is_there
    from dalle_ppo.build.dry_run import dry_run
    from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint

    checkpoint = latest_checkpoint(trainer.run_dir) if resume else None
    if checkpoint is not None:
        trainer.load(load_checkpoint(checkpoint))
    say_what_is_there(trainer.captions.contents, draw_settings(trainer.config))
    print(plan(trainer.config), trainer.memory_plan(), tried, dry_run(trainer, measures), sep="\n")
    print("dry run: nothing was trained or written")


def prepare(trainer, flags: dict[str, bool]) -> None:
    """Makes the folder ready for the trainer, which goes to the checkpoint to resume from, if any.

    Raises:
        ValueError: the folder or its checkpoint does not fit.
    """
    from dalle_ppo.runs.checkpoints import load_checkpoint
    from dalle_ppo.runs.folder import prepare_run_dir
    from dalle_ppo.runs.metrics import METRICS_FILE, first_metrics
    from dalle_ppo.runs.tensorboard import write_settings

    config, run_dir = trainer.config, trainer.run_dir
    checkpoint = prepare_run_dir(run_dir, flags["resume"], flags["overwrite"])
    if checkpoint is not None:
        trainer.load(load_checkpoint(checkpoint))
        first_metrics(run_dir / METRICS_FILE, trainer.progress.iteration)  # raises before anything is changed
    elif flags["resume"]:
        check_unsaved(run_dir, config.checkpoint_every)
    atomic_write(run_dir / "config.yaml", to_yaml(config))
    settings = by_dotted_name(to_dict(config))
    write_settings(run_dir, to_yaml(config), settings, trainer.progress.iteration)


def resumed_settings(run_dir: Path, argv: list[str]) -> tuple[Config, dict[str, bool]]:
    """Settings and flags of a resumed run: those it was started with, overridden by the command line.

    Args:
        run_dir: the run's folder, with its `config.yaml`.
        argv: the command line.
    """
    saved = run_dir / "config.yaml"
    model = load_config(saved).model
    given = ["--config", str(saved), *argv]
    config, flags = parse_command_line(given, "python -m dalle_ppo.train", DESCRIPTION, FLAGS)
    if config.model.revision is None and config.model.path == model.path:
        # A --config on the command line may say null where the run has recorded the commit it found.
        config = dataclasses.replace(config, model=model)
    return dataclasses.replace(config, run_dir=str(run_dir)), flags


def check_unsaved(run_dir: Path, checkpoint_every: int) -> None:
    """Refuses to start over in the folder of a run whose checkpoints are gone.

    Raises:
        ValueError: the run has done so many iterations that it must have written a checkpoint.
    """
    from dalle_ppo.runs.metrics import METRICS_FILE, read_metrics

    done = len(read_metrics(run_dir / METRICS_FILE))
    if done >= checkpoint_every:
        raise ValueError(
            f"run_dir: {run_dir} has {done} iterations in metrics.jsonl but no checkpoint; restore one from "
            "a copy, or start over with --overwrite"
        )
    print(f"{run_dir} ended before its first checkpoint; starting from the beginning")


def by_dotted_name(settings: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as one flat dict."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= by_dotted_name(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def plan(config: Config) -> str:
    """One line that says what the run will do, with the derived sizes."""
    images = config.num_iterations * config.rollout.rollout_batch_size
    return (
        f"{config.num_iterations} iterations of {config.rollout.rollout_batch_size} images "
        f"({config.captions_per_iteration} captions, {config.update.epochs} x {config.minibatches} optimiser "
        f"steps each), {images} images in all, written to {config.run_dir}"
    )


def truncation(num_truncated: int, text_token_count: int) -> str:
    """One line that says how many captions of the run were too long for the text encoder."""
    which = "1 training caption was" if num_truncated == 1 else f"{num_truncated} training captions were"
    return f"{which} longer than {text_token_count} tokens and cut"


def finish(trainer, captions: list, measures) -> None:
    """Evaluates the policy against the reference, writes the report and prints the headline."""
    from dalle_ppo.evaluation.headline import headline
    from dalle_ppo.evaluation.sides import Subject, evaluate
    from dalle_ppo.report.page import write_report
    from dalle_ppo.runs.checkpoints import latest_checkpoint
    from dalle_ppo.runs.provenance import checkpoint_facts
    from dalle_ppo.runs.tensorboard import write_evaluation

    config, run_dir = trainer.config, trainer.run_dir
    origin = checkpoint_facts(latest_checkpoint(run_dir, "policy"))
    family = dataclasses.replace(trainer.family, stores_kept=False)  # draws as `evaluate` and `generate` do
    subject = Subject(trainer.actor.module.eval(), trainer.networks.reference, family, origin)
    result = evaluate(config, run_dir, subject, measures, captions)
    write_evaluation(run_dir, {p["iteration"]: result[p["side"]]["overall"] for p in result["curve"]})
    report = write_report(run_dir)
    print(headline(result))
    print(f"report: {report}")


if __name__ == "__main__":
    run_main(main)
