"""Draws images: `python -m dalle_ppo.generate "a red boat on a blue background" --out boats.png`."""

import argparse
import math
from pathlib import Path

from .config import OneLineParser, run_main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m dalle_ppo.generate", description=__doc__)
    parser.add_argument("caption", help="what to draw")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write, such as boats.png")
    parser.add_argument("--model", default="builtin", help="builtin, a run's folder, or a built world's")
    parser.add_argument("--num_images", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise")
    parser.add_argument("--guidance", type=float, help="default: the policy's own")
    parser.add_argument("--temperature", type=float, help="default: the policy's own")
    parser.add_argument("--top_k", type=int, help="draw from the k most likely codes only")
    parser.add_argument("--compare", action="store_true", help="the reference beside it, with the same noise")
    parser.add_argument("--show_unsafe", action="store_true", help="do not blur images flagged unsafe")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Draws, blurs what is flagged, writes one picture."""
    args = parse_arguments(argv)
    if args.num_images < 1:
        raise ValueError(f"--num_images is {args.num_images}; it must be at least 1")
    if not args.caption.strip():
        raise ValueError("the caption is empty; say what to draw")

    import dataclasses

    import numpy as np
    from PIL import Image

    from .build import build_reward, choose_device, load_model
    from .caption_streams import CaptionRecord
    from .caption_text import caption_id
    from .config import Config, load_config
    from .metrics import image_grid
    from .models.policy import PolicySettings
    from .pictures import blur_unsafe, to_numpy
    from .rollout import NoiseSource, as_float, collect

    device = choose_device(args.device)
    model = load_model(args.model, device)
    overrides = {
        name: getattr(args, name)
        for name in ("guidance", "temperature", "top_k")
        if getattr(args, name) is not None
    }
    settings = dataclasses.replace(model.settings or PolicySettings(), **overrides)
    run_config = Path(args.model) / "config.yaml"
    config = load_config(run_config) if run_config.is_file() else Config()
    reward, _ = build_reward(config, model.world, device)
    caption = CaptionRecord(args.caption, None, caption_id(args.caption))
    decoders = [model.decoder] + ([model.reference] if args.compare else [])
    grids = []
    for decoder in decoders:
        noise = NoiseSource(args.seed, "generate")
        batch = collect(decoder, model.parts, [caption], args.num_images, noise, settings).batch
        images = to_numpy(batch.images)
        flagged = reward(as_float(batch.images), list(batch.captions)).parts["nsfw_probability"]
        flagged = (flagged > config.reward.unsafe_threshold).cpu().numpy()
        if not args.show_unsafe:
            images = blur_unsafe(images, flagged)
        print(f"{int(flagged.sum())} of {len(images)} images flagged unsafe")
        grids.append(image_grid(images, math.ceil(math.sqrt(args.num_images)), gap=2))
    gap = np.full((grids[0].shape[0], 12, 3), 255, np.uint8)
    picture = np.concatenate([grids[0]] + [part for grid in grids[1:] for part in (gap, grid)], axis=1)
    scale = max(1, 256 // batch.images.shape[-1] // 2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS).save(args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
