"""Adds its CLIP's embeddings of eight drawings to a detector's file, so that it knows the CLIP by any name.

    python converters/add_probes.py nsfw_l14.safetensors --clip_model ViT-L-14 --clip_pretrained openai
    python converters/add_probes.py h14_nsfw.pth --out h14_nsfw.safetensors \\
        --clip_model ViT-H-14 --clip_pretrained laion2b_s32b_b79k

HEAD is any head: a converted detector, LAION's .pth or .npy. Its layers stay as they are, bit for bit. The
CLIP must be the head's own: by name, or because --same_as says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Add the probes. Exit code 2 on bad input."""
    arguments = _parse_arguments()
    try:
        return _run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        from dalle_ppo.base.halving import is_out_of_memory
        from dalle_ppo.config.clip_options import clip_option
        from dalle_ppo.models.clip_config import rename_settings

        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"error: {rename_settings(str(error), clip_option)}", file=sys.stderr)
        return 2


def _parse_arguments() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("head", metavar="HEAD", type=Path, help="the detector's file")
    parser.add_argument("--clip_model", required=True, help="as in clip.model: a folder or open_clip's name")
    parser.add_argument("--clip_pretrained", help="as in clip.pretrained: open_clip's tag or a weight file")
    parser.add_argument("--quick_gelu", choices=("true", "false"), help="as in clip.quick_gelu")
    parser.add_argument("--same_as", metavar="NAME:TAG", help="as in clip.same_as: which CLIP it is")
    parser.add_argument("--out", type=Path, help="the .safetensors file to write (default: HEAD itself)")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, so that --help does not wait for torch.
    from dalle_ppo.base.new_file import check_new_file

    out = arguments.out or arguments.head
    if out.resolve() != arguments.head.resolve():
        check_new_file("--out", out, ".safetensors")
    from dalle_ppo.config.clip import ClipConfig
    from dalle_ppo.models.clip import load_clip
    from dalle_ppo.models.heads.binding import add_probes

    said = None if arguments.quick_gelu is None else arguments.quick_gelu == "true"
    config = ClipConfig(arguments.clip_model, arguments.clip_pretrained, said, arguments.same_as)
    clip = load_clip(config.model, config.pretrained, "cpu", config.quick_gelu, config.same_as)
    added = add_probes(arguments.head, clip, out)
    told = f"{out}: probes of {clip.name} ({clip.pretrained}) added"
    print(told if added else f"{arguments.head} has them already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
