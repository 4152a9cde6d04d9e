"""Labels pictures of a run: on a page for people, or by a model that ranks them.

    python -m dalle_ppo.label RUN
    python -m dalle_ppo.label RUN --by http://localhost:8000/v1 --model NAME
    python -m dalle_ppo.label RUN --choose disagreement --reward_model rm.safetensors

Answers and pictures go into RUN/preferences. A model's key is read from OPENAI_API_KEY.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from dalle_ppo.config.command_line import OneLineParser, run_main
from dalle_ppo.preferences.asking.budget import add_budget_arguments

DRAWING = {
    "num_images": 2,
    "reference": False,
    "choose": "random",
    "reward_model": "",
    "seed": 0,
    "device": "auto",
    "memory_gb": 4.0,
}
"""Options that say what is drawn, with their defaults."""
PAGE = {"port": 8765, "repeat": 0.1, "goal": 200}
"""Options of the page, with their defaults."""
MODEL = {
    "rater": None,
    "prompt": None,
    "sets": None,
    "labelled": False,
    "max_requests": None,
    "max_cost": None,
    "input_price": None,
    "output_price": None,
    "timeout": 60.0,
    "retries": 5,
}
"""Options of a model that ranks, with their defaults."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.label",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, whose newest policy draws")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--num_images", type=int, help=f"pictures in a set; default: {DRAWING['num_images']}"
    )
    pictures.add_argument(
        "--reference", action="store_true", default=None, help="the reference draws half of them"
    )
    pictures.add_argument(
        "--choose",
        choices=("random", "disagreement"),
        help="which sets are shown: as they come, or three of four where a reward model's members disagree "
        f"about the best picture; default: {DRAWING['choose']}",
    )
    pictures.add_argument("--reward_model", metavar="FILE", help="for --choose disagreement")
    pictures.add_argument(
        "--seed", type=int, help=f"of captions, noise and order; default: {DRAWING['seed']}"
    )
    pictures.add_argument("--device", help=f"auto, cpu, cuda or cuda:N; default: {DRAWING['device']}")
    pictures.add_argument(
        "--memory_gb", type=float, help=f"for caches and activations; default: {DRAWING['memory_gb']}"
    )
    add_page_arguments(parser.add_argument_group("the page"))
    add_model_arguments(parser.add_argument_group("a model that ranks"))
    return parser.parse_args(argv)


def add_page_arguments(group: argparse._ArgumentGroup) -> None:
    """The arguments that apply without `--by`."""
    group.add_argument("--port", type=int, help=f"0 for any free one; default: {PAGE['port']}")
    group.add_argument(
        "--repeat", type=float, help=f"share of sets that come a second time; default: {PAGE['repeat']}"
    )
    group.add_argument("--goal", type=int, help=f"answers that fill the bar; default: {PAGE['goal']}")


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """The arguments that apply with `--by`."""
    group.add_argument(
        "--by", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    group.add_argument("--model", metavar="NAME", help="its model, which must read pictures")
    group.add_argument("--rater", help="name of who answers; default: the model's")
    group.add_argument(
        "--prompt", type=Path, help="text of the question; default: RUN/preferences/prompt.txt"
    )
    group.add_argument(
        "--sets", type=int, help="ask about the first N sets; default: 50, and all with --labelled"
    )
    group.add_argument(
        "--labelled",
        action="store_true",
        default=None,
        help="ask about the sets that people have answered, draw none",
    )
    add_budget_arguments(group)
    group.add_argument("--timeout", type=float, help=f"seconds for a reply; default: {MODEL['timeout']}")
    group.add_argument(
        "--retries",
        type=int,
        help="times that a failed request is repeated; then the command gives up; "
        f"default: {MODEL['retries']}",
    )


def main(argv: list[str] | None) -> int:
    """Opens the page, or asks the model."""
    args = parse_arguments(argv)
    if (args.by is None) != (args.model is None):
        raise ValueError("--by and --model belong together; give both, or neither for the page")

    check_choice(args)
    for name, value in (DRAWING | PAGE | MODEL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    from dalle_ppo.build.labels import LabelOptions, store_of

    options = LabelOptions(
        args.num_images, args.reference, args.seed, args.device, args.memory_gb, args.reward_model
    )
    store = store_of(args.run)

    def open_drawer():
        from dalle_ppo.build.labels import open_drawer

        return open_drawer(args.run, store, options)

    return dispatch(args, store, open_drawer)


def check_choice(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, or that would be ignored.

    Raises:
        ValueError: they do not.
    """
    if args.by is None:
        refuse(args, MODEL, "is for a model that ranks; give --by and --model too, or leave it out")
    else:
        refuse(args, PAGE, "is for the page; leave it out with --by")
    if (args.choose == "disagreement") != bool(args.reward_model):
        raise ValueError(
            "--choose disagreement and --reward_model belong together; give the file that "
            "python -m dalle_ppo.reward_model wrote, or leave out both"
        )
    if args.reward_model and args.labelled:
        raise ValueError("--labelled draws nothing, so there is nothing to choose; leave out --choose")
    if args.labelled:
        # Scripts may give device and memory to every command.
        drawing = [name for name in DRAWING if name not in ("device", "memory_gb")]
        refuse(args, drawing, "says what is drawn, but --labelled draws nothing; leave one of them out")
    if args.reward_model and not Path(args.reward_model).is_file():
        raise ValueError(
            f"--reward_model is {args.reward_model}, which is not a file; write it with "
            "python -m dalle_ppo.reward_model RUN --out FILE"
        )


def refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuses options that are given, though they do not apply.

    Raises:
        ValueError: one is given.
    """
    given = next((name for name in names if getattr(args, name) is not None), None)
    if given is not None:
        raise ValueError(f"--{given} {why}")


def dispatch(args: argparse.Namespace, store, open_drawer: Callable) -> int:
    """Hands over to the page or to the model; `open_drawer` loads the policy."""
    if args.by is None:
        from dalle_ppo.preferences.page.command import serve

        return serve(args, store, open_drawer)
    from dalle_ppo.preferences.asking.command import ask_model

    return ask_model(args, store, open_drawer)


if __name__ == "__main__":
    run_main(main)
