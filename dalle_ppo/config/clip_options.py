"""Options of commands that name a CLIP without a run's settings."""

import argparse


def add_clip_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds `--clip_model`, `--clip_pretrained` and `--quick_gelu`.

    Args:
        parser: of the command.
        default: for the help: which CLIP is used if none is named; None if one must be.
    """
    parser.add_argument(
        "--clip_model",
        required=default is None,
        help="builtin, a folder in open_clip's or transformers' layout, or open_clip's name"
        + ("" if default is None else f"; default: {default}"),
    )
    parser.add_argument(
        "--clip_pretrained", help="open_clip's tag for the weights, such as openai, or a weight file"
    )
    parser.add_argument(
        "--quick_gelu",
        choices=("true", "false"),
        help="whether a weight file needs OpenAI's QuickGELU, where nothing else says so",
    )


def clip_option(name: str) -> str:
    """The option for a setting of a CLIP, such as model."""
    return f"--clip_{name}" if name in ("model", "pretrained") else f"--{name}"
