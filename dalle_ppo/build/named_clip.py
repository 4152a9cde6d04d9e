"""Opens the CLIP named on a command line, which may be the built-in world's, or the one of a run."""

import argparse
from pathlib import Path

import torch

from dalle_ppo.build.models import find_world, is_run
from dalle_ppo.build.rewards import load_run_clip
from dalle_ppo.config.clip_options import clip_option
from dalle_ppo.config.command_line import load_config
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import ClipScorer, load_clip
from dalle_ppo.models.clip_config import rename_settings

BUILTIN = "builtin"


def open_named_clip(args: argparse.Namespace, device: torch.device) -> ClipScorer:
    """Loads the CLIP that the options of `add_clip_options` name.

    Args:
        args: with `clip_model`: "builtin", a folder in open_clip's or transformers' layout, or open_clip's
            name; `clip_pretrained`: open_clip's tag or a weight file, None for the first two; `quick_gelu`.
        device: where it runs.

    Raises:
        ValueError: it cannot be loaded, or a tag is missing, or given although none is needed.
    """
    model, pretrained = args.clip_model, args.clip_pretrained
    folder = World().clip if model == BUILTIN else Path(model)
    if folder.is_dir() and pretrained is not None:
        raise ValueError(
            f"--clip_pretrained is {pretrained}, but --clip_model {model} has its own weights; leave it out"
        )
    if not folder.is_dir() and pretrained is None:
        raise ValueError(f"--clip_model {model} needs --clip_pretrained, open_clip's tag such as openai")
    quick_gelu = None if args.quick_gelu is None else args.quick_gelu == "true"
    try:
        return load_clip(str(folder) if folder.is_dir() else model, pretrained, device, quick_gelu)
    except ValueError as error:  # load_clip's messages name settings
        raise ValueError(rename_settings(str(error), clip_option)) from error


def open_run_clip(run: Path, device: torch.device) -> ClipScorer:
    """The CLIP in a run's settings.

    Raises:
        ValueError: the folder is no run, or its CLIP cannot be loaded.
    """
    if not is_run(str(run)):
        raise ValueError(
            f"{run} is not a run with settings, so nothing says which CLIP to use; give --clip_model, such "
            "as builtin, and --clip_pretrained"
        )
    config = load_config(run / "config.yaml")
    return load_run_clip(config.clip, find_world(config.model.path), device)
