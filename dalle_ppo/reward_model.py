"""Learns what raters prefer from labelled pictures, for the reward term `preference`.

    python -m dalle_ppo.reward_model runs/a --out rm.safetensors
    python -m dalle_ppo.train --reward.terms '[{name: preference, reward_model: rm.safetensors}]'

It is an ensemble of small networks on CLIP's embeddings of image and caption. It belongs to the CLIP that it
was trained with: that of the run, or the one named here. Its quality on held-out captions is printed, and
written beside it as .json and .png.
"""

import argparse
from pathlib import Path

from dalle_ppo.base.new_file import check_new_file
from dalle_ppo.config.clip_options import add_clip_options
from dalle_ppo.config.command_line import OneLineParser, run_main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.reward_model",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument(
        "store", metavar="STORE", type=Path, help="a run or project folder, or its preferences"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    add_clip_options(parser, "the CLIP of the run that STORE belongs to")
    parser.add_argument("--members", type=int, default=5, help="networks of the ensemble")
    parser.add_argument("--hidden", type=int, default=128, help="hidden units; 0 is linear")
    parser.add_argument(
        "--penalties",
        type=float,
        nargs="+",
        default=[0.003, 0.01, 0.03],
        help="on squared weights; each network keeps the one that is best on the answers to validate with",
    )
    parser.add_argument("--steps", type=int, default=60, help="of L-BFGS for each penalty")
    parser.add_argument("--seed", type=int, default=0, help="of weights and resampling")
    parser.add_argument(
        "--no_curve", action="store_true", help="leave the learning curve out; it takes longest"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; of the CLIP")
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Learns, measures and writes."""
    args = parse_arguments(argv)
    beside = (args.out.with_suffix(suffix) for suffix in (".json", ".png"))
    check_new_file("--out", args.out, ".safetensors", *beside)
    for option in ("clip_pretrained", "quick_gelu"):
        if args.clip_model is None and getattr(args, option) is not None:
            raise ValueError(f"--{option} is for --clip_model; give that too, or leave --{option} out")

    from dalle_ppo.preferences.store import find_store

    store = find_store(args.store)
    from dalle_ppo.build.models import choose_device
    from dalle_ppo.build.named_clip import open_named_clip, open_run_clip
    from dalle_ppo.preferences.reward_model.data import find_answers
    from dalle_ppo.preferences.reward_model.network import FitSettings
    from dalle_ppo.preferences.reward_model.training import train_reward_model

    settings = FitSettings(args.members, args.hidden, tuple(args.penalties), args.steps, args.seed)
    find_answers(store)  # an empty store is told before a CLIP is loaded
    device = choose_device(args.device)
    clip = open_named_clip(args, device) if args.clip_model else open_run_clip(store.folder.parent, device)
    report = train_reward_model(store, args.out, clip, settings, with_curve=not args.no_curve)
    print("\n".join(report.lines()))
    print(f"wrote {args.out}: reads embeddings of CLIP {clip.name} ({clip.pretrained})")
    return 0


if __name__ == "__main__":
    run_main(main)
