"""Opens the CLIP named on a command line, which may be the built-in world's."""

from pathlib import Path

import torch

from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import ClipScorer, load_clip

BUILTIN = "builtin"


def open_named_clip(model: str, pretrained: str | None, device: torch.device) -> ClipScorer:
    """Loads a CLIP.

    Args:
        model: "builtin", a folder in open_clip's or transformers' layout, or open_clip's name.
        pretrained: open_clip's tag or a weight file; None for the first two.
        device: where it runs.

    Raises:
        ValueError: it cannot be loaded, or a tag is missing, or given although none is needed.
    """
    folder = World().clip if model == BUILTIN else Path(model)
    if folder.is_dir() and pretrained is not None:
        raise ValueError(
            f"--clip_pretrained is {pretrained}, but --clip_model {model} has its own weights; leave it out"
        )
    if not folder.is_dir() and pretrained is None:
        raise ValueError(f"--clip_model {model} needs --clip_pretrained, open_clip's tag such as openai")
    try:
        return load_clip(str(folder) if folder.is_dir() else model, pretrained, device)
    except ValueError as error:  # load_clip's messages name settings
        raise ValueError(
            str(error).replace("clip.model", "--clip_model").replace("clip.pre", "--clip_pre")
        ) from error
