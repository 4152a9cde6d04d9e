"""Trains a policy on preferences, with fresh labels on what it draws: draw, label, fit, train, check, repeat.

    python -m dalle_ppo.align --config configs/iconworld.yaml --run_dir runs/aligned --rater simulated
    python -m dalle_ppo.align --config my.yaml --run_dir runs/aligned --by URL --model NAME

The run is an ordinary run of dalle_ppo.train, and all of its settings may be given too. If its reward has
the term `preference`, each round replaces that term's reward model; otherwise the term replaces the whole
reward. Labels go to RUN_DIR/preferences, rounds to RUN_DIR/align. Started again, it carries on.
"""

import argparse
from pathlib import Path

from dalle_ppo.config.command_line import OneLineParser, parse_command_line, run_main
from dalle_ppo.config.settings import Config
from dalle_ppo.config.user_code import NO_USER_CODE, refuse_user_code
from dalle_ppo.preferences.asking.budget import add_budget_arguments, limits_of


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = OneLineParser(
        prog="python -m dalle_ppo.align",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings of the run, as for dalle_ppo.train")
    parser.add_argument(
        "--run_dir",
        help="folder of the run, required here or in --config; any other setting of dalle_ppo.train may be "
        "given too",
    )
    parser.add_argument(
        "--rater",
        choices=("page", "simulated"),
        default="page",
        help="who labels: people on a page, or the built-in world's simulated rater",
    )
    parser.add_argument("--by", metavar="URL", help="label with a model behind this endpoint instead")
    parser.add_argument("--model", metavar="NAME", help="its model, which must read pictures")
    add_budget_arguments(parser)
    parser.add_argument("--port", type=int, default=8765, help="of the page")
    parser.add_argument("--rounds", type=int, default=4, help="each draws, labels, fits and trains")
    parser.add_argument("--answers", type=int, default=150, help="sets labelled in a round")
    parser.add_argument("--iterations", type=int, default=20, help="training iterations per round")
    parser.add_argument(
        "--min_accuracy",
        type=float,
        default=0.6,
        help="stop when the last reward model agrees with less than this share of the new answers",
    )
    parser.add_argument("--num_images", type=int, default=2, help="pictures in a set")
    parser.add_argument(
        "--choose",
        choices=("random", "disagreement"),
        default="random",
        help="from the second round on: sets as they come, or three of four where the last reward model's "
        "members disagree",
    )
    parser.add_argument("--members", type=int, default=5, help="networks of the ensemble")
    parser.add_argument("--label_seed", type=int, default=0, help="seed of sets, errors and reward models")
    parser.add_argument("--no_user_code", action="store_true", help=NO_USER_CODE)
    return parser.parse_known_args(argv)


def main(argv: list[str] | None) -> int:
    """Runs the rounds that are not finished."""
    args, rest = parse_arguments(argv)
    if (args.by is None) != (args.model is None):
        raise ValueError("--by and --model belong together; give both, or neither")
    if args.num_images < 2:
        raise ValueError(f"--num_images is {args.num_images}; a set has at least 2 pictures")
    if args.choose == "disagreement" and args.members < 2:
        raise ValueError(f"--members is {args.members}; --choose disagreement needs at least 2")
    if any(text.split("=")[0] == "--num_iterations" for text in rest):
        raise ValueError("--num_iterations is --rounds times --iterations here; give these instead")
    named = {"--config": args.config, "--run_dir": args.run_dir}
    given = [text for option, value in named.items() if value is not None for text in (option, value)] + rest
    config, _ = parse_command_line(given, "python -m dalle_ppo.align", "")
    if args.no_user_code:
        refuse_user_code(config, args.config or "the command line")
    if config.run_dir is None:
        raise ValueError(
            "--run_dir is missing; name the folder of the run, which is also how it is continued"
        )

    from dalle_ppo.base.lock import locked
    from dalle_ppo.build.alignment import AlignBuild, build_steps, default_reward
    from dalle_ppo.preferences.aligning import ROUNDS_FOLDER, AlignSettings, align
    from dalle_ppo.preferences.reward_model.network import FitSettings

    settings = AlignSettings(args.rounds, args.answers, args.iterations, args.min_accuracy)
    fit = FitSettings(members=args.members, seed=args.label_seed)
    for_people = args.by is None and args.rater == "page"
    choose = args.choose == "disagreement"
    build = AlignBuild(config, settings, fit, args.num_images, args.label_seed, for_people, choose)
    label = choose_label_step(args, config)
    if default_reward(config):
        print("reward.terms has no preference term, so one replaces all other terms", flush=True)
    steps = build_steps(build, label)
    with locked(Path(config.run_dir) / ROUNDS_FOLDER, f"--run_dir {config.run_dir}"):
        for finished in align(build.run_dir, settings, steps):
            print(finished.line(), flush=True)
    return 0


def choose_label_step(args: argparse.Namespace, config: Config):
    """The label step that the command line names."""
    from dalle_ppo.build import label_steps

    if args.by is not None:
        return label_steps.endpoint(args.by, args.model, limits_of(args))
    if args.rater == "simulated":
        return label_steps.simulated(config, args.label_seed)
    return label_steps.page(args.port, args.num_images)


if __name__ == "__main__":
    run_main(main)
