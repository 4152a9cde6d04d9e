"""Evaluates a run's policy against its reference: `python -m dalle_ppo.evaluate runs/NAME`."""

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from dalle_ppo.base.stopping import StopSignals
from dalle_ppo.config.captions import READING
from dalle_ppo.config.command_line import OneLineParser, load_config, parse_command_line, run_main
from dalle_ppo.config.settings import Config
from dalle_ppo.config.user_code import NO_USER_CODE, refuse_user_code
from dalle_ppo.runs.places import POLICY_GROUPS, checkpoint_of, refuse_wrong_path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m dalle_ppo.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "--captions",
        help="captions to evaluate on instead of the run's held-out ones: anything that captions.source "
        "takes, except builtin; replaces evaluation.json, report.html and the results in evaluation/",
    )
    for name in READING:
        parser.add_argument(
            f"--captions.{name}", metavar="VALUE", help=f"for --captions; default: the run's captions.{name}"
        )
    parser.add_argument(
        "--num_captions",
        type=int,
        help="default: the run's evaluation.num_captions; of a prompt set or an earlier evaluation, all",
    )
    parser.add_argument("--num_samples", type=int, help="images per caption; default: the run's")
    parser.add_argument("--batch_size", type=int, help="images drawn together; default: the run's")
    parser.add_argument("--seed", type=int, help="seed of captions and noise; default: the run's")
    parser.add_argument(
        "--checkpoints",
        help="all, or iterations such as 20,40: the last is evaluated as the policy, the others give a curve "
        "over training; default: the newest",
    )
    parser.add_argument(
        "--baselines",
        help="also evaluate what the reference achieves by drawing more images: reject (draw again while the "
        "detector says unsafe), best_of_4 (keep the highest reward); separate several with commas",
    )
    parser.add_argument("--heldout_clip", help="a second CLIP, as NAME:PRETRAINED or a folder")
    parser.add_argument("--heldout_detector", help="a detector for that CLIP")
    parser.add_argument("--judges", help="held-out judges: names as in reward.terms, separated by commas")
    parser.add_argument("--suite", help="also draw a suite of captions that test one ability each: iconworld")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no_user_code", action="store_true", help=NO_USER_CODE)
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Draws all sides and writes evaluation.json and report.html into the run's folder."""
    args = parse_arguments(argv)
    refuse_other_paths(args.run)
    config = changed_config(config_of(args), args)
    if args.no_user_code:
        refuse_user_code(config, str(args.run))
    from dalle_ppo.runs.folder import sole_writer

    signals = StopSignals()
    with (
        sole_writer(args.run, "or evaluate a copy of the folder"),
        signals.caught(lambda: "what has been drawn is kept; go on with the same command"),
        signals.interruptible(),
    ):
        draw_and_write(args, config)
    return 0


def refuse_other_paths(run: Path) -> None:
    """Refuses a path inside a run, with the command that evaluates that run or checkpoint.

    Raises:
        ValueError: it is one, or a folder of runs.
    """
    iteration = checkpoint_of(run)
    chosen = "" if iteration is None else f" --checkpoints {iteration}"
    refuse_wrong_path(run, "run", f"python -m dalle_ppo.evaluate {{}}{chosen}")


def draw_and_write(args: argparse.Namespace, config: Config) -> None:
    """Draws all sides, measures them and writes the results into the run's folder."""
    from dalle_ppo.build.captions import evaluation_captions
    from dalle_ppo.build.given_captions import given_captions
    from dalle_ppo.build.measures import build_measures
    from dalle_ppo.build.models import choose_device, load_model
    from dalle_ppo.build.rewards import build_reward
    from dalle_ppo.evaluation.baselines import parse_baselines
    from dalle_ppo.evaluation.headline import headline
    from dalle_ppo.evaluation.heldout import load_heldout
    from dalle_ppo.evaluation.sides import Subject, evaluate
    from dalle_ppo.report.page import write_report
    from dalle_ppo.runs.provenance import checkpoint_facts
    from dalle_ppo.runs.tensorboard import write_evaluation

    baselines = parse_baselines(args.baselines) if args.baselines else []
    device = choose_device(args.device)
    model = load_model(str(args.run), device)
    folders = choose_checkpoints(args.run, args.checkpoints or str(model.iteration))
    *earlier, last = folders
    policy = model.decoder
    if last != model.iteration:
        policy = policy_of(folders[last], model.reference)
    if model.settings is not None:
        config = dataclasses.replace(config, policy=model.settings)
    if args.captions:
        given = [name.removeprefix("captions.") for name in given_reading(args)]
        captions = given_captions(config, args.captions, given, args.num_captions)
    else:
        captions = evaluation_captions(config)
    heldout = load_heldout(config.evaluation.heldout_clip, config.evaluation.heldout_detector, device)
    reward = build_reward(config, model.world, device)
    measures = build_measures(config, reward, model.world, heldout, device)
    subject = Subject(
        policy,
        model.reference,
        model.family(config.policy),
        origin=checkpoint_facts(folders[last]),
        earlier={iteration: loader(folders[iteration], model.reference) for iteration in earlier},
    )
    captions_file = Path(args.captions).name if args.captions else None
    result = evaluate(config, args.run, subject, measures, captions, captions_file, baselines)
    if not args.captions:
        write_evaluation(args.run, {p["iteration"]: result[p["side"]]["overall"] for p in result["curve"]})
    print(headline(result))
    print(f"report: {write_report(args.run, config.report)}")


def config_of(args: argparse.Namespace) -> Config:
    """The run's settings, with those for reading captions that the command line gives."""
    path = args.run / "config.yaml"
    given = given_reading(args)
    if not given:
        return load_config(path)
    if not args.captions:
        raise ValueError(f"--{next(iter(given))} applies to the file in --captions; give that too")
    pairs = [text for name, value in given.items() for text in (f"--{name}", value)]
    return parse_command_line(["--config", str(path), *pairs], "python -m dalle_ppo.evaluate", "")[0]


def given_reading(args: argparse.Namespace) -> dict[str, str]:
    """What the command line says about reading captions, by the name of the setting."""
    given = {f"captions.{name}": getattr(args, f"captions.{name}") for name in READING}
    return {name: value for name, value in given.items() if value is not None}


def changed_config(config: Config, args: argparse.Namespace) -> Config:
    """The run's settings, overridden by the command line.

    Raises:
        ValueError: a number is out of range.
    """
    from dalle_ppo.config.clip import ClipConfig

    changes = {
        "num_captions": args.num_captions,
        "samples_per_caption": args.num_samples,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "heldout_detector": args.heldout_detector,
        "suite": args.suite,
    }
    if args.heldout_clip:
        name, _, pretrained = args.heldout_clip.partition(":")
        changes["heldout_clip"] = ClipConfig(name, pretrained or None)
    if args.judges:
        changes["judges"] = [name.strip() for name in args.judges.split(",")]
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes))


def choose_checkpoints(run: Path, wanted: str) -> dict[int, Path]:
    """Checkpoint folders of a run by iteration, in order.

    Args:
        run: the run's folder.
        wanted: "all", or iterations separated by commas.

    Raises:
        ValueError: if one is not a number, or the run has no checkpoint of it.
    """
    found = {
        int(folder.name.removeprefix("step_")): folder
        for folder in (run / "checkpoints").glob("step_*")
        if re.fullmatch(r"step_\d{6,}", folder.name)
    }
    if wanted == "all":
        return dict(sorted(found.items()))
    there = ", ".join(map(str, sorted(found)))
    try:
        iterations = sorted({int(text) for text in wanted.split(",")})
    except ValueError:
        raise ValueError(
            f"--checkpoints: {wanted!r} is neither all nor iterations such as 20,40; {run} has {there}"
        ) from None
    for iteration in iterations:
        if iteration not in found:
            raise ValueError(f"--checkpoints: {run} has no checkpoint {iteration}; it has {there}")
    return {iteration: found[iteration] for iteration in iterations}


def loader(folder: Path, decoder) -> Callable:
    """A function that loads a checkpoint's policy, so that only one is in memory at a time."""
    return lambda: policy_of(folder, decoder)


def policy_of(folder: Path, decoder):
    """The policy in a checkpoint's folder, as a network like `decoder`, its reference."""
    from dalle_ppo.build.models import policy_like
    from dalle_ppo.runs.checkpoints import load_checkpoint

    return policy_like(decoder, load_checkpoint(folder, *POLICY_GROUPS))


if __name__ == "__main__":
    run_main(main)
