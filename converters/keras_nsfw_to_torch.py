"""Converts a Keras NSFW detector to a safetensors file for `dalle_ppo.models.heads.nsfw.load_detector`.

    python converters/keras_nsfw_to_torch.py laion-l14 nsfw_l14.safetensors --verify
    python converters/keras_nsfw_to_torch.py my.keras my.safetensors \\
        --clip_model ViT-B-32 --clip_pretrained openai
    python converters/keras_nsfw_to_torch.py two_classes.keras my.safetensors \\
        --clip_model ViT-B-32 --clip_pretrained openai --unsafe_class nsfw --classes nsfw,safe

SOURCE is a SavedModel folder, a zip of one, a Keras 2 or 3 .h5, a Keras 3 .keras, or one of LAION's published
detectors by name (laion-l14, laion-b32). Weights and graph are read; no code from the file is run.
AutoKeras' category tables are read only from SavedModels: export a .keras or .h5 that has some as one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_ppo.models.heads.keras.endings import Ending


def main() -> int:
    """Convert, describe, and verify if asked. Exit code 2 on bad input, 1 if the verification fails."""
    arguments = _parse_arguments()
    try:
        return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse_arguments() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("source", metavar="SOURCE", help="file, folder, laion-l14 or laion-b32")
    # Replaced, because the notes and errors below ask for the same command with one option more.
    parser.add_argument(
        "out", metavar="OUT.safetensors", type=Path, help="file to write; one that is there is replaced"
    )
    parser.add_argument("--clip_model", default="", help="open_clip's name for its CLIP, such as ViT-B-32")
    parser.add_argument(
        "--clip_pretrained", default="", help="open_clip's tag for the weights, such as openai"
    )
    parser.add_argument(
        "--round_to_float16",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the reward must round embeddings to float16 first (default: only for LAION's detectors)",
    )
    parser.add_argument(
        "--unsafe_class", default=None, help="of a model with two outputs, the unsafe one: 0, 1, or its name"
    )
    parser.add_argument(
        "--classes", default=None, help="names of the two outputs in their order, such as safe,unsafe"
    )
    parser.add_argument("--final", choices=("sigmoid",), help="add this to a model that ends in logits")
    parser.add_argument("--licence", default="", help="a note on the terms of the original")
    parser.add_argument("--cache_dir", type=Path, default=None, help="where downloads are kept")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the original in TensorFlow; fails above 1e-6 (more if the original rounds)",
    )
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, so that --help does not wait for torch.
    from dalle_ppo.models.heads.keras.convert import convert, rounding_of_source
    from dalle_ppo.models.heads.keras.download import fetch
    from dalle_ppo.models.heads.keras.published import DETECTORS

    ending = _ending(arguments)
    named = arguments.source in DETECTORS
    source = fetch(arguments.source, arguments.cache_dir) if named else Path(arguments.source)
    info = convert(
        source,
        arguments.out,
        clip_model=arguments.clip_model,
        clip_pretrained=arguments.clip_pretrained,
        round_to_float16=arguments.round_to_float16,
        licence=arguments.licence,
        ending=ending,
    )
    _describe(arguments.out)
    rounding = rounding_of_source(source)
    if rounding:
        print(f"note: the original rounds what it computes to {rounding}, {arguments.out} does not")
    if info.output == "score":
        print("note: it gives a score, not a probability; if that is a logit, add --final sigmoid")
    if not info.clip_model:
        print("warning: no --clip_model given; the reward will refuse this detector", file=sys.stderr)
    return _verify(source, arguments.out, ending, rounding) if arguments.verify else 0


def _ending(arguments: argparse.Namespace) -> Ending:
    from dalle_ppo.models.heads.keras.endings import Ending, class_number

    if arguments.classes and arguments.unsafe_class is None:
        raise ValueError(
            f"--classes {arguments.classes} needs --unsafe_class too: the name of the unsafe class"
        )
    named = arguments.unsafe_class is not None
    unsafe = class_number(arguments.unsafe_class, arguments.classes) if named else None
    return Ending(unsafe, arguments.final == "sigmoid")


def _describe(out: Path) -> None:
    from dalle_ppo.models.heads.nsfw import read_head

    specs, info = read_head(out)
    print(f"{out}: {info.output} from embeddings of CLIP {info.clip_model or 'unknown'}", end="")
    print(f" ({info.clip_pretrained or 'unknown'}), {info.dimension} numbers", end="")
    print(", rounded to float16 by the reward" if info.round_to_float16 else "")
    for spec in specs:
        print(f"  {spec.describe()}")


def _verify(source: Path, out: Path, ending: Ending, rounding: str) -> int:
    import numpy as np

    from dalle_ppo.models.heads.keras.verify import tolerance, verify

    comparisons = verify(source, out, ending=ending)
    for result in comparisons:
        print(f"verify: {result.num_embeddings} embeddings, {result.embeddings}: ", end="")
        print(f"largest difference {result.largest:.1e}")
    largest = np.max([result.largest for result in comparisons])  # NaN if one is, unlike max()
    limit = tolerance(rounding)
    passed = all(result.largest <= limit for result in comparisons)
    verdict = f"equal, but for rounding to {rounding}," if rounding else "equal"
    verdict = verdict if passed else "NOT equal"
    print(f"verify: {verdict} to the original within {limit:.0e} (largest difference {largest:.1e})")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
