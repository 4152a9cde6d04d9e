"""Settings of a CLIP."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model: the one behind the reward, or the one held out for evaluation."""

    model: str = "builtin"
    """"builtin", a folder in open_clip's or transformers' layout, or open_clip's name for a model."""
    pretrained: str | None = None
    """open_clip's tag for the weights, or a weight file; null for a folder."""
    quick_gelu: bool | None = None
    """Whether a weight file needs OpenAI's QuickGELU (true) or GELU (false); null if the file, a
    configuration next to it or the model's name says so."""
    same_as: str | None = None
    """Which CLIP this is, as NAME:TAG such as "ViT-L-14:openai", for detectors without probes, which are
    matched by name; null uses `model` and `pretrained`."""

    def __post_init__(self) -> None:
        if self.same_as is not None and not all(self.same_as.partition(":")):
            raise ValueError(
                f"clip.same_as is {self.same_as!r}; write it as NAME:TAG, such as ViT-L-14:openai, with a "
                "model and a tag of open_clip"
            )
