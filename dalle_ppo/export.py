"""Writes a fine-tuned policy for other programs.

    python -m dalle_ppo.export runs/NAME --out DIR --to min-dalle

DIR can then be used as the `models_root` of `min_dalle.MinDalle`, and here by `generate --model DIR` or
`train --model.path DIR`.
"""

import argparse
from pathlib import Path

from dalle_ppo.base.new_folder import refuse_existing, whole_folder
from dalle_ppo.config.command_line import OneLineParser, run_main

FORMATS = {"min-dalle": ".pt", "safetensors": ".safetensors"}
# The defaults of `MinDalle.generate_image`, and the start token it always uses.
# Source: https://github.com/kuprel/min-dalle/blob/main/min_dalle/min_dalle.py
PACKAGE_DEFAULTS = {"temperature": 1.0, "top_k": 256, "supercondition_factor": 16.0}
PACKAGE_START_TOKEN = 16383


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.export",
        description=__doc__,
    )
    parser.add_argument("model", help="a run's folder, mini, mega, or a folder of their weights")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--to", choices=FORMATS, required=True, help="min-dalle: .pt files; safetensors: for this program"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="data type of the weights"
    )
    parser.add_argument("--revision", help="commit of the hub's repository, for mini and mega")
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Writes the folder and prints where the package samples differently."""
    args = parse_arguments(argv)
    refuse_existing(args.out)

    import torch

    from dalle_ppo.build.models import load_model
    from dalle_ppo.build.saving import write_model

    model = load_model(args.model, torch.device("cpu"), args.revision)
    if model.files is None:
        raise ValueError(
            f"{args.model} is a model of the built-in world; the min-dalle package loads only DALL·E mini "
            "and Mega"
        )
    with whole_folder(args.out) as folder:
        write_model(folder, model, FORMATS[args.to], getattr(torch, args.dtype))
    print(f"wrote {args.out}, DALL·E {model.files.preset} in the layout of the min-dalle package")
    if args.to == "min-dalle":
        print(difference(model.settings, model.files.preset))
    return 0


def difference(settings, preset: str) -> str:
    """How `MinDalle` samples differently from the policy, and how to call it, in one line.

    Args:
        settings: the policy's settings.
        preset: "mini" or "mega".
    """
    from dalle_ppo.models.dalle.presets import BART_PRESETS

    config = BART_PRESETS[preset]
    own = {
        "temperature": settings.temperature,
        "top_k": settings.top_k or config.num_codes,
        "supercondition_factor": settings.guidance,
    }
    changed = ", ".join(f"{name}={own[name]:g}" for name in own if own[name] != PACKAGE_DEFAULTS[name])
    parts = [f"call generate_image with {changed}"] if changed else []
    start = config.start_token if settings.start_token is None else settings.start_token
    if start != PACKAGE_START_TOKEN:
        parts.append(f"it always starts from token {PACKAGE_START_TOKEN}, the policy starts from {start}")
    parts.append(
        f"it cuts the end token off captions of more than {config.num_text_tokens} tokens, which "
        "changes both the conditional and the unconditional branch"
    )
    return f"the min-dalle package samples differently: {'; '.join(parts)}"


if __name__ == "__main__":
    run_main(main)
