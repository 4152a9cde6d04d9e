"""Draws images: `python -m dalle_ppo.generate "a red boat on a blue background" --out boats.png`."""

import argparse
import dataclasses
import math
from pathlib import Path

from dalle_ppo.config.command_line import OneLineParser, load_config, run_main
from dalle_ppo.config.user_code import NO_USER_CODE, refuse_user_code

GAP, COMPARE_GAP = 2, 12  # pixels of white around an image, and between policy and reference
DTYPES = ("float32", "bfloat16", "float16")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m dalle_ppo.generate", description=__doc__)
    parser.add_argument("caption", help="what to draw")
    parser.add_argument("--out", type=Path, required=True, help="the image file to write, such as boats.png")
    parser.add_argument(
        "--model",
        default="builtin",
        help="builtin; mini or mega (from the hub); or a folder with a run, DALL·E weights or a built world",
    )
    parser.add_argument("--revision", help="commit of the hub's repository, for mini and mega")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--num_images", type=int, help="how many to draw; default: 9")
    size.add_argument("--grid_size", type=int, help="draw a square grid with this many images per side")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling noise")
    parser.add_argument(
        "--guidance",
        type=float,
        help="how strongly the caption counts; default: the policy's own, 16 for mini and mega",
    )
    parser.add_argument(
        "--temperature", type=float, help="higher draws more unlikely codes; default: the policy's own"
    )
    parser.add_argument(
        "--top_k",
        type=int,
        help="draw from the k most likely codes only; default: the policy's own, 256 for mini and mega",
    )
    parser.add_argument(
        "--start_token",
        type=int,
        help="the code that drawing begins with; default: the one used in training; the min-dalle package "
        "uses 16383",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also draw with the reference, from the same noise"
    )
    parser.add_argument("--show_unsafe", action="store_true", help="do not blur images flagged unsafe")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no_user_code", action="store_true", help=NO_USER_CODE)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="data type of the transformer's weights"
    )
    parser.add_argument(
        "--memory_gb", type=float, default=4.0, help="for caches and activations, in addition to the weights"
    )
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> int:
    """Checks the arguments before anything is loaded and returns the number of images to draw.

    Raises:
        ValueError: for an invalid value.
    """
    for name in ("num_images", "grid_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if not args.caption.strip():
        raise ValueError("the caption is empty; say what to draw")
    if not 0 < args.memory_gb < math.inf:
        raise ValueError(f"--memory_gb is {args.memory_gb:g}; it must be a number above 0")
    from PIL import Image

    if Image.registered_extensions().get(args.out.suffix.lower()) not in Image.SAVE:
        suffix = args.out.suffix or "a name without a suffix"
        raise ValueError(f"--out {args.out}: {suffix} is not an image format; use .png or .jpg")
    return args.grid_size**2 if args.grid_size else args.num_images or 9


def main(argv: list[str] | None) -> int:
    """Draws the images, blurs the flagged ones and writes them as one picture."""
    args = parse_arguments(argv)
    num_images = check_arguments(args)
    config_file = Path(args.model) / "config.yaml"
    if args.no_user_code and config_file.is_file():
        refuse_user_code(load_config(config_file), str(config_file))

    import torch

    from dalle_ppo.build.models import choose_device, load_model
    from dalle_ppo.build.unsafe import unsafe_detector

    device = choose_device(args.device)
    model = load_model(args.model, device, args.revision, getattr(torch, args.dtype))
    settings = choose_settings(args, model)
    detect = unsafe_detector(args.model, model.world, device)
    decoders = [model.decoder, model.reference] if args.compare else [model.decoder]
    drawn = draw(args, decoders, model.family(settings), num_images)
    grids = [grid_of(images, args.caption, detect, args.show_unsafe) for images in drawn]
    write_picture(args.out, grids, drawn[0].shape[-1])
    return 0


def choose_settings(args: argparse.Namespace, model):
    """The policy's own settings, overridden by the command line.

    Raises:
        ValueError: for a start token that the model does not have.
    """
    from dalle_ppo.models.policy_settings import PolicySettings

    names = ("guidance", "temperature", "top_k", "start_token")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = dataclasses.replace(model.settings or PolicySettings(), **given)
    settings.check_start_token(model.decoder.config.image_vocab_count)
    return settings


def draw(args: argparse.Namespace, decoders: list, family, num_images: int) -> list:
    """Each policy's images from the same noise, uint8 [N, 3, H, W] on the CPU, drawn in batches that fit."""
    from dalle_ppo.captions.text import caption_id
    from dalle_ppo.rl.noise import noise_keys

    plan = family.plan(decoders[0], num_images, args.memory_gb)
    print(plan)
    ids = [caption_id(args.caption)] * num_images
    keys = noise_keys(args.seed, "generate", 0, ids, range(num_images))
    prompts, num_truncated = family.read([args.caption])
    drawn = []
    for decoder in decoders:
        family.pack(decoder, plan)
        drawn.append(family.draw(family.sampler_weights(decoder), prompts, keys, plan).images.cpu())
    if num_truncated:
        print(f"the caption is longer than {family.text_token_count} tokens and was cut")
    if family.reads_nothing(args.caption):
        print("the model cannot read any of the caption: it reads only ASCII and the names of emoji")
    return drawn


def grid_of(images, caption: str, detect, show_unsafe: bool):
    """One picture, uint8 [H, W, 3], of all images; flagged ones are blurred unless `show_unsafe` is set."""
    import numpy as np

    from dalle_ppo.runs.pictures import blur_unsafe, image_grid, to_numpy

    pixels = to_numpy(images)
    if detect is not None:
        flagged = np.array(detect(images, caption))
        print(f"{int(flagged.sum())} of {len(pixels)} images flagged unsafe")
        if not show_unsafe:
            pixels = blur_unsafe(pixels, flagged)
    return image_grid(pixels, math.ceil(math.sqrt(len(pixels))), gap=GAP)


def write_picture(out: Path, grids: list, image_size: int) -> None:
    """Puts grids side by side; small images are enlarged."""
    import numpy as np
    from PIL import Image

    gap = np.full((grids[0].shape[0], COMPARE_GAP, 3), 255, np.uint8)
    pixels = np.concatenate([grids[0]] + [part for grid in grids[1:] for part in (gap, grid)], axis=1)
    scale = max(1, 128 // image_size)
    image = Image.fromarray(pixels)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    out.parent.mkdir(parents=True, exist_ok=True)
    image.save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_main(main)
