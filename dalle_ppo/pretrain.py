"""Supervised training on captions and images: `python -m dalle_ppo.pretrain --out models/safe`.

Fine-tunes a model (or trains it `--from_scratch`) by next-token prediction with caption dropout, so that
guidance keeps working. Typical use: fine-tune on safe images before PPO,

    python -m dalle_ppo.pretrain --out models/safe --tags UNLIKELY
    python -m dalle_ppo.train --model.path models/safe

DALL·E mini and Mega learn from photos once `converters/flax_to_safetensors.py` has added the VQGAN's encoder.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dalle_ppo.base.new_folder import refuse_existing, whole_folder
from dalle_ppo.config.command_line import OneLineParser, run_main

if TYPE_CHECKING:
    from datasets import Dataset

    from dalle_ppo.iconworld.making.dalle import Tokenizers
    from dalle_ppo.training.supervised import TokenPairs

NUM_PAIRS = 20_000


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.pretrain",
        description=__doc__,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model; must not exist")
    parser.add_argument("--model", default="builtin", help="the model to start from")
    parser.add_argument(
        "--data",
        default="builtin",
        help="builtin: scenes of the built-in world; or a folder of images with metadata.jsonl or .csv "
        "(columns file_name and text), as in the datasets library's imagefolder; they are cropped to squares",
    )
    parser.add_argument("--tags", nargs="+", help="with builtin data: use captions with these tags only")
    parser.add_argument(
        "--num_pairs", type=int, help=f"with builtin data: number of scenes to draw; default: {NUM_PAIRS}"
    )
    parser.add_argument("--from_scratch", action="store_true", help="start from fresh weights")
    parser.add_argument("--num_steps", type=int, default=500, help="optimiser steps")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in an optimiser step")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="of AdamW, at its peak")
    parser.add_argument(
        "--caption_dropout",
        type=float,
        default=0.12,
        help="share of captions replaced by an empty one, which guidance needs",
    )
    parser.add_argument("--freeze_encoder", action="store_true", help="do not train the text encoder")
    parser.add_argument("--bfloat16", action="store_true", help="compute matrix products in bfloat16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of scenes, order, dropout and fresh weights"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Trains, then writes a model folder for use with `--model` and `--model.path`."""
    args = parse_arguments(argv)
    refuse_existing(args.out)
    check_data(args)

    import copy
    from dataclasses import replace

    from tqdm import tqdm

    from dalle_ppo.build.models import choose_device, find_world, load_model
    from dalle_ppo.build.saving import save_model
    from dalle_ppo.iconworld.making.dalle import Tokenizers, fresh_bart
    from dalle_ppo.models.dalle.weight_files import PUBLISHED
    from dalle_ppo.models.dalle.weights import NO_ENCODER_HINT, load_vqgan_encoder
    from dalle_ppo.training.supervised import SupervisedConfig, train_supervised

    if args.model in PUBLISHED:
        raise ValueError(f"--model {args.model}: it has no VQGAN encoder; {NO_ENCODER_HINT}")
    config = SupervisedConfig(
        num_steps=args.num_steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        caption_dropout=args.caption_dropout,
        train_encoder=not args.freeze_encoder,
        bfloat16=args.bfloat16,
        seed=args.seed,
    )
    world, device = find_world(args.model), choose_device(args.device)
    model = load_model(args.model, device)
    vqgan_encoder = world.vqgan_encoder().to(device) if world else load_vqgan_encoder(model.files, device)
    tokenizers = Tokenizers(model.parts.tokenizer, vqgan_encoder, model.parts.vqgan)
    is_folder = args.data != "builtin"
    pairs = load_photos(args.data, tokenizers) if is_folder else load_scenes(args, tokenizers)
    if args.from_scratch:
        encoder, decoder = (part.to(device) for part in fresh_bart(model.decoder.config, args.seed))
    else:
        encoder = copy.deepcopy(model.parts.encoder).requires_grad_(True)
        decoder = copy.deepcopy(model.decoder).requires_grad_(True)
    steps = train_supervised(encoder, decoder, pairs, tokenizers.text.unconditional(), config)
    with tqdm(steps, total=config.num_steps, desc="pretrain", dynamic_ncols=True) as bar:
        for numbers in bar:
            bar.set_postfix(
                loss=f"{numbers['loss']:.4f}", lr=f"{numbers['learning_rate']:.2e}", refresh=False
            )
    trained = replace(model, decoder=decoder, parts=replace(model.parts, encoder=encoder))
    with whole_folder(args.out) as folder:
        save_model(folder, trained)
    print(
        f"wrote {args.out}, final loss {numbers['loss']:.4f} nats per token; use it with --model {args.out}"
    )
    return 0


def check_data(args: argparse.Namespace) -> None:
    """Refuses wrong options for the data before anything is loaded.

    Raises:
        ValueError: there is no such folder, or an option means nothing for one, or its value is wrong.
    """
    from dalle_ppo.iconworld.captions import TAGS

    if args.data != "builtin":
        for option in ("tags", "num_pairs"):
            if getattr(args, option) is not None:
                raise ValueError(
                    f"--{option} is for built-in scenes, but --data {args.data} is a folder, which is read "
                    f"whole; leave --{option} out"
                )
        if not Path(args.data).is_dir():
            raise ValueError(
                f"--data {args.data} is not a folder; give one with images and metadata.jsonl or .csv"
            )
    unknown = [tag for tag in args.tags or () if tag not in TAGS]
    if unknown:
        raise ValueError(
            f"--tags {unknown[0]} is unknown; the tags of the built-in world are {', '.join(TAGS)}"
        )
    if args.num_pairs is not None and args.num_pairs < 1:
        raise ValueError(f"--num_pairs is {args.num_pairs}; it must be at least 1")


def load_scenes(args: argparse.Namespace, tokenizers: "Tokenizers") -> "TokenPairs":
    """Captions and scenes of the built-in world as tokens.

    Raises:
        ValueError: the model does not draw such scenes.
    """
    import numpy as np

    from dalle_ppo.iconworld.captions import TAGS
    from dalle_ppo.iconworld.making.dalle import sample_token_pairs
    from dalle_ppo.iconworld.scenes import IMAGE_SIZE

    if tokenizers.decoder.config.image_size != IMAGE_SIZE:
        raise ValueError(
            f"--model {args.model} does not draw built-in scenes; give --data a folder of images"
        )
    rng = np.random.default_rng([args.seed, 4])
    return sample_token_pairs(tokenizers, rng, args.num_pairs or NUM_PAIRS, tuple(args.tags or TAGS))


def load_photos(folder: str, tokenizers: "Tokenizers") -> "TokenPairs":
    """Captions and images of a folder as tokens.

    Raises:
        ValueError: it is not one of images and captions.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps
    from tqdm import tqdm

    from dalle_ppo.iconworld.making.scene_tokens import image_tokens
    from dalle_ppo.training.supervised import TokenPairs

    rows, texts = read_photos(folder)
    size = (tokenizers.decoder.config.image_size,) * 2
    codes = []
    for row in tqdm(rows, desc="images to tokens"):
        image = np.array(ImageOps.fit(row["image"].convert("RGB"), size, Image.Resampling.LANCZOS))
        codes.append(image_tokens(tokenizers.encoder, tokenizers.decoder, image[None]))
    encoded = tokenizers.text.encode(texts)
    if encoded.num_truncated:
        length = tokenizers.text.text_token_count
        print(
            f"{encoded.num_truncated} of {len(texts)} captions are longer than {length} tokens and were cut"
        )
    return TokenPairs(encoded.tokens, torch.cat(codes))


def read_photos(folder: str) -> tuple["Dataset", list[str]]:
    """Rows of an imagefolder, and the caption of each; a missing one is empty.

    Raises:
        ValueError: a file of it cannot be read, there is no column of captions, or one is not text.
    """
    from datasets import Image, load_dataset

    try:
        rows = load_dataset("imagefolder", data_dir=folder, split="train")
    except ValueError as error:  # Arrow's name no file; such as a text in one row and a list in the next
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--data {folder} cannot be read ({reason}); give a folder of images with metadata.jsonl or "
            ".csv, where each text is a caption"
        ) from None
    except IndexError:  # datasets 5.2 looks at the first row without asking whether there is one
        raise ValueError(
            f"--data {folder}: its metadata.jsonl or .csv has no rows; write one with a file_name and a text "
            "for each image"
        ) from None
    if "text" not in rows.column_names:
        raise ValueError(
            f"--data {folder} has columns {', '.join(rows.column_names)}; metadata.jsonl or .csv must "
            "have a text for each file_name"
        )
    texts = rows.select_columns("text")[:]["text"]
    for number, text in enumerate(texts):
        if not isinstance(text, str | None):
            path = rows.cast_column("image", Image(decode=False))[number]["image"]["path"]
            raise ValueError(
                f"--data {folder}: the text of {Path(path).name} is {str(text)[:80]}, read as "
                f"{type(text).__name__}; each text must be a caption, quoted in metadata.jsonl"
            )
    return rows, [text or "" for text in texts]


if __name__ == "__main__":
    run_main(main)
