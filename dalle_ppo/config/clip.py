"""Settings of CLIP, which measures images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model: the one behind the reward, or the one held out for evaluation."""

    model: str = "builtin"
    """"builtin", a folder in open_clip's layout, or a model name that open_clip knows."""
    pretrained: str | None = None
    """open_clip's tag for the weights; null for a folder."""
