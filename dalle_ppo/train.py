"""Fine-tunes a text-to-image model with PPO: `python -m dalle_ppo.train`."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.child import end_with_parent
from dalle_ppo.base.team import ALONE, Team, check_same
from dalle_ppo.config.command_line import load_config, parse_command_line, run_main, to_dict, to_yaml
from dalle_ppo.config.settings import Config
from dalle_ppo.config.user_code import NO_USER_CODE, refuse_user_code

DESCRIPTION = """Fine-tunes a text-to-image model with token-level PPO, evaluates it against the model it
started from, and writes a folder with checkpoints, metrics and report.html. Without arguments it trains the
built-in world's model on this machine, in minutes."""
FLAGS = {
    "resume": "continue the run in run_dir from its newest checkpoint",
    "overwrite": "replace the run in run_dir",
    "no_user_code": NO_USER_CODE,
    "dry_run": "check everything, predict disk space and memory, and stop before training; writes nothing",
}


def main(argv: list[str] | None, team: Team = ALONE) -> int:
    """Trains, evaluates and writes the report.

    Args:
        argv: arguments; None uses the process's.
        team: the processes that train together. The first one alone touches the folder.
    """
    config, flags = parse_command_line(argv, "python -m dalle_ppo.train", DESCRIPTION, FLAGS)
    if team.size > 1:
        check_alike(team, config, flags)
    config, flags = team.on_first(lambda: final_settings(config, flags, argv))
    run_dir = Path(config.run_dir)
    if flags["no_user_code"]:
        refuse_user_code(config, config.run_dir)

    from dalle_ppo.build.captions import draw_settings, say_what_is_there
    from dalle_ppo.build.models import check_start
    from dalle_ppo.build.trainer import build_trainer
    from dalle_ppo.build.trial import try_reward
    from dalle_ppo.runs.folder import check_run_dir, sole_writer

    # All settings are checked before the folder is touched.
    team.on_first(lambda: check_run_dir(run_dir, flags["resume"], flags["overwrite"]))
    team.on_first(lambda: check_start(config.model.path, run_dir))
    if team.size > 1:
        take_own_device(team, config)
    trainer = build_trainer(config, run_dir, team, dry=flags["dry_run"])
    if team.size > 1:
        check_same(team, {"weights with the hash": trainer.reference_sha256}, "give all the same model.path")
    memory_plan = trainer.memory_plan()
    config = trainer.config  # with the commit of the weights if they came from the hub
    tried = try_reward(trainer)
    captions, measures = evaluation_parts(trainer) if config.evaluation.at_end else ([], None)
    if team.size > 1:
        check_captions(trainer, captions)
    if flags["dry_run"]:
        if team.is_first:
            dry(trainer, measures, tried, flags)
        return 0
    if not team.is_first:
        with trainer.signals.caught(lambda: how_to_go_on(run_dir, team.size)):
            follow(trainer, captions, measures)
        return 0
    check_run_dir(run_dir, flags["resume"], flags["overwrite"])  # loading may have taken minutes
    with sole_writer(run_dir), trainer.signals.caught(lambda: how_to_go_on(run_dir, team.size)):
        prepare(trainer, flags)
        say_what_is_there(trainer.captions.contents, draw_settings(config))
        print(plan(config), flush=True)
        print(memory_plan, flush=True)
        print(tried, flush=True)
        try:
            trainer.run()
        except OSError as error:  # the disk is full, or the folder is gone
            raise ValueError(f"run_dir: {error}; {how_to_go_on(run_dir, team.size)}") from error
        if trainer.progress.captions_truncated:
            print(truncation(trainer.progress.captions_truncated, trainer.family.text_token_count))
        if config.evaluation.at_end:
            with trainer.signals.interruptible():
                finish(trainer, captions, measures)
    return 0


def evaluation_parts(trainer) -> tuple[list, object]:
    """Captions and measures of the evaluation at the end, tried before anything is trained."""
    from dalle_ppo.build.captions import evaluation_captions
    from dalle_ppo.build.judges import try_judges
    from dalle_ppo.build.measures import build_measures
    from dalle_ppo.build.models import choose_device, find_world
    from dalle_ppo.evaluation.heldout import load_heldout

    config = trainer.config
    e, device = config.evaluation, choose_device(config.device)
    captions = evaluation_captions(config)
    heldout = load_heldout(e.heldout_clip, e.heldout_detector, device)
    measures = build_measures(config, trainer.reward, find_world(config.model.path), heldout, device)
    try_judges(trainer, measures.judges)
    return captions, measures


def final_settings(
    config: Config, flags: dict[str, bool], argv: list[str] | None
) -> tuple[Config, dict[str, bool]]:
    """Settings and flags with the run's folder, and with those of the run if one is resumed.

    Args:
        config, flags: as the command line says.
        argv: the command line; None is the process's.

    Raises:
        ValueError: there is no folder to resume from.
    """
    if config.run_dir is None:
        if flags["resume"]:
            raise ValueError("--resume needs --run_dir, the folder of the run to continue")
        config = dataclasses.replace(config, run_dir=f"runs/{datetime.now():%Y-%m-%d_%H%M%S}")
    run_dir = Path(config.run_dir)
    if flags["resume"] and (run_dir / "config.yaml").is_file():
        return resumed_settings(run_dir, sys.argv[1:] if argv is None else argv)
    return config, flags


def check_alike(team: Team, config: Config, flags: dict[str, bool]) -> None:
    """Refuses processes with different settings or packages.

    Raises:
        ValueError: they differ, or there are too many for a batch.
    """
    from dalle_ppo.runs.provenance import versions

    check_same(team, versions(), "install the same versions on all machines")
    settings = by_dotted_name(to_dict(config)) | {f"--{name}": given for name, given in flags.items()}
    check_same(team, settings, "start all processes with the same settings")


def check_captions(trainer, evaluated: list) -> None:
    """Refuses processes that have read different captions, as their images would count for each other's.

    Args:
        trainer: has the captions of the samples and of the anchor.
        evaluated: captions of the evaluation.

    Raises:
        ValueError: they differ.
    """
    read = {"samples": trainer.sample_captions, "evaluation": evaluated}
    listed = {name: [(record.id, record.text) for record in records] for name, records in read.items()}
    if trainer.networks.anchor is not None:
        images = trainer.networks.anchor.images
        listed["anchor"] = list(zip(images.caption_ids, images.captions, strict=True))
    facts = {
        f"captions of the {name} with the hash": hashlib.sha256(json.dumps(found).encode()).hexdigest()
        for name, found in listed.items()
    }
    check_same(trainer.team, facts, "give all machines the same files of captions.source")


def take_own_device(team: Team, config: Config) -> None:
    """Refuses a batch that cannot be shared, and gives each process a device."""
    from dalle_ppo.base.distributed import take_device
    from dalle_ppo.training.sharing import check_divides

    check_divides(config, team)
    take_device(team, config.device)


def dry(trainer, measures, tried: str, flags: dict[str, bool]) -> None:
    """Prints what the run would do and need.

    Raises:
        ValueError: something does not fit, such as the checkpoint to resume from.
    """
    from dalle_ppo.build.captions import draw_settings, say_what_is_there
    from dalle_ppo.build.dry_run import dry_run
    from dalle_ppo.runs.checkpoints import load_checkpoint
    from dalle_ppo.runs.folder import checkpoint_to_resume

    if flags["resume"]:
        folder = checkpoint_to_resume(trainer.run_dir)
        go_to(trainer, None if folder is None else load_checkpoint(folder))
    say_what_is_there(trainer.captions.contents, draw_settings(trainer.config))
    needs = dry_run(trainer, measures, flags["overwrite"])
    print(plan(trainer.config), trainer.memory_plan(), tried, needs, sep="\n")
    print("dry run: nothing was trained or written")


def go_to(trainer, checkpoint) -> None:
    """Takes a resumed trainer to its checkpoint; without one, it begins again.

    Raises:
        ValueError: the folder's metrics do not fit the checkpoint, or it should have one.
    """
    from dalle_ppo.runs.metrics import METRICS_FILE, newest_metrics

    if checkpoint is None:
        # The settings that it ran with: those of now may ask for more checkpoints.
        check_unsaved(trainer.run_dir, load_config(trainer.run_dir / "config.yaml").checkpoint_every)
        return
    trainer.load(checkpoint)
    newest_metrics(trainer.run_dir / METRICS_FILE, trainer.progress.iteration, 1)


def prepare(trainer, flags: dict[str, bool]) -> None:
    """Makes the folder ready for the trainer, which goes to the checkpoint to resume from, if any.

    Raises:
        ValueError: the folder or its checkpoint does not fit.
    """
    from dalle_ppo.build.room import check_room
    from dalle_ppo.runs.checkpoints import load_checkpoint
    from dalle_ppo.runs.folder import prepare_run_dir
    from dalle_ppo.runs.metrics import METRICS_FILE
    from dalle_ppo.runs.tensorboard import write_settings
    from dalle_ppo.training.checkpointing import shared_checkpoint

    config, run_dir = trainer.config, trainer.run_dir
    folder = prepare_run_dir(run_dir, flags["resume"], flags["overwrite"])
    checkpoint = None if folder is None else load_checkpoint(folder)
    shared_checkpoint(checkpoint, trainer.team, trainer.actor, trainer.critic)
    if flags["resume"]:
        go_to(trainer, checkpoint)  # raises before any change
    if trainer.progress.iteration == 0 and (run_dir / "tensorboard").is_dir():
        shutil.rmtree(run_dir / "tensorboard")  # what it shows begins at 0, and would be there twice
    check_room(trainer)
    # First, because settings beside it make a run that can be resumed, and it alone is an empty folder.
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    if trainer.progress.iteration == 0:
        (run_dir / METRICS_FILE).unlink(missing_ok=True)  # `check_unsaved` compares it with these settings
    atomic_write(run_dir / "config.yaml", to_yaml(config))
    settings = by_dotted_name(to_dict(config))
    write_settings(run_dir, to_yaml(config), settings, trainer.progress.iteration)


def follow(trainer, captions: list, measures) -> None:
    """Trains and evaluates in a process that is not the first, from the checkpoint that the first has loaded.

    Args:
        trainer: ready to run.
        captions, measures: as in `finish`.
    """
    from dalle_ppo.training.checkpointing import shared_checkpoint

    checkpoint = shared_checkpoint(None, trainer.team, trainer.actor, trainer.critic)
    if checkpoint is not None:
        trainer.load(checkpoint)
    del checkpoint  # as large as all networks and optimisers
    trainer.run()
    if trainer.config.evaluation.at_end:
        finish(trainer, captions, measures)


def how_to_go_on(run_dir: Path, processes: int = 1) -> str:
    """What a run that was stopped has kept, and the command that continues it.

    Args:
        run_dir: the run's folder.
        processes: how many have trained together.
    """
    from dalle_ppo.runs.checkpoints import checkpoint_folders
    from dalle_ppo.runs.places import quoted

    found = max(checkpoint_folders(run_dir / "checkpoints"), default=None)
    kept = "no checkpoint yet" if found is None else f"the newest checkpoint is {found[1]}"
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    if here.isdecimal() and int(here) < processes:
        return f"{kept}; go on with the command of this run, on every machine, and --resume"
    start = "python" if processes == 1 else f"torchrun --nproc_per_node {processes}"
    return f"{kept}; go on with: {start} -m dalle_ppo.train --run_dir {quoted(run_dir)} --resume"


def resumed_settings(run_dir: Path, argv: list[str]) -> tuple[Config, dict[str, bool]]:
    """Settings and flags of a resumed run: those it was started with, overridden by the command line.

    Args:
        run_dir: the run's folder, with its `config.yaml`.
        argv: the command line.
    """
    from dalle_ppo.config.resumed import without_repeated

    saved = run_dir / "config.yaml"
    settings = load_config(saved)
    model = settings.model
    given, repeated = without_repeated(argv, settings)
    for option in repeated:
        print(f"{option}: the run has this entry already, so it is not added again", flush=True)
    given = ["--config", str(saved), *given]
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
    from dalle_ppo.runs.metrics import METRICS_FILE, count_metrics

    done = count_metrics(run_dir / METRICS_FILE)
    if done > checkpoint_every:  # not at it: a kill may have come while the first one was being written
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
    import torch

    from dalle_ppo.evaluation.headline import headline
    from dalle_ppo.evaluation.sides import Subject, evaluate
    from dalle_ppo.report.page import write_report
    from dalle_ppo.runs.checkpoints import latest_checkpoint
    from dalle_ppo.runs.places import POLICY_GROUPS
    from dalle_ppo.runs.provenance import checkpoint_facts
    from dalle_ppo.runs.tensorboard import write_evaluation

    config, run_dir = trainer.config, trainer.run_dir
    origin = trainer.team.on_first(lambda: checkpoint_facts(latest_checkpoint(run_dir, *POLICY_GROUPS)))
    sides = trainer.actor.module.eval(), trainer.networks.reference
    # Draws and scores as `evaluate` and `generate` do, which find these numbers kept.
    family = dataclasses.replace(trainer.family, stores_kept=False)
    if config.model.frozen_dtype == "float32":
        family = dataclasses.replace(family, dtype=torch.float32)
    shared = {"team": trainer.team, "between": trainer.signals.check_together}
    subject = Subject(*map(trainer.family.sampler_weights, sides), family, origin, **shared)
    result = evaluate(config, run_dir, subject, measures, captions)
    if not trainer.team.is_first:
        return
    write_evaluation(run_dir, {p["iteration"]: result[p["side"]]["overall"] for p in result["curve"]})
    report = write_report(run_dir, config.report)
    print(headline(result))
    print(f"report: {report}")


if __name__ == "__main__":
    end_with_parent()  # an alignment, if it has started this
    run_main(main, together=True)
