"""Opens the CLIP named on a command line, which may be the built-in world's."""

from pathlib import Path

import torch

from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import ClipScorer, load_clip

BUILTIN = "builtin"


def clip_names(model: str, pretrained: str | None) -> tuple[str, str]:
    """How a head's file names a CLIP: as `ClipScorer.name` and `.pretrained` do, but without loading it.

    Args:
        model: "builtin", a folder in open_clip's layout, or open_clip's name.
        pretrained: open_clip's tag; None for the first two.

    Raises:
        ValueError: the tag is missing, or given although none is needed.
    """
    folder = _folder(model)
    if folder is not None:
        if pretrained is not None:
            raise ValueError(
                f"--clip_pretrained is {pretrained}, but --clip_model {model} has its own "
                "weights; leave it out"
            )
        return folder.name, "local"
    if pretrained is None:
        raise ValueError(f"--clip_model {model} needs --clip_pretrained, open_clip's tag such as openai")
    return model, pretrained


def open_named_clip(model: str, pretrained: str | None, device: torch.device) -> ClipScorer:
    """Loads the CLIP that `clip_names` names.

    Raises:
        ValueError: open_clip cannot load it.
    """
    clip_names(model, pretrained)
    try:
        return load_clip(str(_folder(model) or model), pretrained, device)
    except ValueError as error:  # load_clip's messages name settings
        raise ValueError(
            str(error).replace("clip.model", "--clip_model").replace("clip.pre", "--clip_pre")
        ) from error


def _folder(model: str) -> Path | None:
    if model == BUILTIN:
        return World().clip
    return Path(model) if Path(model).is_dir() else None
