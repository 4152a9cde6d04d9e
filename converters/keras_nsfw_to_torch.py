"""Converts a Keras NSFW detector to a safetensors file for `dalle_ppo.rewards.nsfw.load_detector`.

    python converters/keras_nsfw_to_torch.py laion-l14 nsfw_l14.safetensors --verify
    python converters/keras_nsfw_to_torch.py my.keras my.safetensors --clip_model ViT-B-32 --clip_pretrained openai

SOURCE is a SavedModel folder, a zip of one, a Keras 2 or 3 .h5, a Keras 3 .keras, or one of LAION's published
detectors by name. Weights and graph are read; no code from the file is run.
"""

from __future__ import annotations

import argparse
import sys


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="file, folder, laion-l14 or laion-b32")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--clip_model", default="", help="open_clip's name of the CLIP it reads, as ViT-B-32")
    parser.add_argument("--clip_pretrained", default="", help="open_clip's tag of that CLIP's weights, as openai")
    parser.add_argument(
        "--round_to_float16",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the reward shall round embeddings to float16 first (default: only for LAION's detectors)",
    )
    parser.add_argument("--licence", default="", help="a note on the terms of the original")
    parser.add_argument(
        "--verify", action="store_true", help="compare with the original in TensorFlow; fail above 1e-6"
    )
    return parser.parse_args()


def main() -> int:
    """Convert, describe, and verify if asked. Exit code 2 on bad input, 1 if the verification fails."""
    arguments = vars(parse_arguments())
    from dalle_ppo.keras_import.convert import convert

    arguments.pop("verify")
    try:
        info = convert(arguments.pop("source"), arguments.pop("out"), **arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(info)
    return 0


if __name__ == "__main__":
    sys.exit(main())
