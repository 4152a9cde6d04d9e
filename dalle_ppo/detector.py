"""Trains an NSFW detector on CLIP embeddings of your own images, for `detector:` in the reward.

    python -m dalle_ppo.detector embed IMAGES --out E.npy --labels L.npy \\
        --clip_model ViT-L-14 --clip_pretrained openai
    python -m dalle_ppo.detector train --embeddings E.npy --labels L.npy --out my.safetensors \\
        --clip_model ViT-L-14 --clip_pretrained openai

`embed` writes the embeddings of a folder of images. `train` fits a small network, calibrates it, measures it
on images it has not seen, and writes a detector that belongs to this CLIP.
"""

import argparse
import sys
from pathlib import Path

from dalle_ppo.base.new_file import check_new_file
from dalle_ppo.config.clip_options import add_clip_options
from dalle_ppo.config.command_line import OneLineParser, run_main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.detector",
        description=__doc__,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="embed|train")
    embed = commands.add_parser("embed", help="turn a folder of images into embeddings")
    embed.add_argument("folder", type=Path, help="folder of images; its subfolders are read too")
    embed.add_argument(
        "--out", type=Path, required=True, help="the .npy file to write, [images, width]; names go to a .txt"
    )
    embed.add_argument(
        "--labels",
        type=Path,
        help="also write labels to this .npy file: images are unsafe in subfolders unsafe, nsfw or 1, "
        "and safe in safe, sfw or 0",
    )
    embed.add_argument(
        "--unsafe", nargs="+", default=[], help="subfolders with unsafe images; all others are safe"
    )
    embed.add_argument("--batch_size", type=int, default=128, help="images embedded at a time")
    embed.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train = commands.add_parser("train", help="train a detector on embeddings and labels")
    train.add_argument("--embeddings", type=Path, required=True, help=".npy file of numbers, [images, width]")
    train.add_argument(
        "--labels", type=Path, required=True, help=".npy file: 0 safe, 1 unsafe, or probabilities, [images]"
    )
    train.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    train.add_argument(
        "--hidden",
        type=int,
        nargs="*",
        default=[128, 64],
        help="widths of hidden layers; no widths: logistic regression",
    )
    train.add_argument("--epochs", type=int, default=200, help="passes over the images, at most")
    train.add_argument("--patience", type=int, default=15, help="passes without progress before it stops")
    train.add_argument("--batch_size", type=int, default=128, help="images in an optimiser step")
    train.add_argument("--learning_rate", type=float, default=1e-3, help="of AdamW")
    train.add_argument("--weight_decay", type=float, default=0.05, help="of AdamW, on matrices")
    train.add_argument("--dropout", type=float, default=0.2, help="share of hidden units left out in a step")
    train.add_argument("--seed", type=int, default=0, help="seed of weights, order and held-back images")
    train.add_argument("--licence", default="", help="a note on the detector's terms, kept in its file")
    for command in (embed, train):
        add_clip_options(command)
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Embeds or trains, and prints the result."""
    args = parse_arguments(argv)
    return embed(args) if args.command == "embed" else train(args)


def embed(args: argparse.Namespace) -> int:
    """Writes embeddings, names and, if asked, labels."""
    check_new_file("--out", args.out, ".npy", args.out.with_suffix(".txt"))
    if args.labels:
        check_new_file("--labels", args.labels, ".npy")
        if args.labels.resolve() == args.out.resolve():
            raise ValueError(f"--labels is {args.labels}, the file of --out; name another file")
    elif args.unsafe:
        raise ValueError("--unsafe applies to labels; give --labels FILE.npy too")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; it must be at least 1")

    from tqdm import tqdm

    from dalle_ppo.build.models import choose_device
    from dalle_ppo.build.named_clip import open_named_clip
    from dalle_ppo.training.detector.images import (
        embed_images,
        find_images,
        labels_from_names,
        write_embeddings,
    )

    names = find_images(args.folder)
    if args.labels:
        labels_from_names(names, tuple(args.unsafe))
    clip = open_named_clip(args, choose_device(args.device))
    batches = []
    with tqdm(total=len(names), desc="embed", unit="image", dynamic_ncols=True) as bar:
        for batch in embed_images(args.folder, names, clip, args.batch_size):
            batches.append(batch)
            bar.update(len(batch.names) + len(batch.unreadable))
    for name, reason in (line for batch in batches for line in batch.unreadable):
        print(f"left out {name}: {reason}", file=sys.stderr)
    shape, num_left_out = write_embeddings(batches, args.out, args.labels, tuple(args.unsafe))
    print(
        f"wrote {args.out}: {shape[0]} embeddings of {shape[1]} numbers from CLIP {clip.name} "
        f"({clip.pretrained}); {num_left_out} images left out"
    )
    return 0


def train(args: argparse.Namespace) -> int:
    """Fits, measures and writes a detector."""
    check_new_file("--out", args.out, ".safetensors")

    import torch
    from tqdm import tqdm

    from dalle_ppo.build.named_clip import open_named_clip
    from dalle_ppo.training.detector.data import read_examples, split
    from dalle_ppo.training.detector.network import FitSettings, fit
    from dalle_ppo.training.detector.report import calibrate_and_measure
    from dalle_ppo.training.detector.saving import probes_of, save_detector

    settings = FitSettings(
        hidden=tuple(args.hidden),
        epochs=args.epochs,
        patience=args.patience,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        seed=args.seed,
    )
    # Loaded before the training, which would be in vain without it.
    clip = open_named_clip(args, torch.device("cpu"))
    parts = split(read_examples(args.embeddings, args.labels), args.seed)
    probes = probes_of(clip, parts.test.embeddings.shape[1], args.embeddings)
    with tqdm(total=args.epochs, desc="train", unit="pass", dynamic_ncols=True) as bar:
        for progress, best in fit(parts, settings):
            network = best
            bar.update(1)
            bar.set_postfix(
                loss=f"{progress.loss:.4f}",
                validation=f"{progress.validation_loss:.4f}",
                best=progress.best_epoch,
                refresh=False,
            )
    report = calibrate_and_measure(network, parts)
    layers, names = network.layers(report.calibration), (clip.name, clip.pretrained)
    save_detector(args.out, layers, names, probes, args.embeddings, args.licence)
    print("\n".join(report.lines(args.out)))
    print(f"wrote {args.out}: reads embeddings of CLIP {clip.name} ({clip.pretrained})")
    return 0


if __name__ == "__main__":
    run_main(main)
