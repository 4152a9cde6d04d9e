"""Settings of CLIP, which measures images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model: the one behind the reward, or the one held out for evaluation."""

    model: str = "builtin"
    """"builtin", a folder in open_clip's or transformers' layout, or a model name that open_clip knows."""
    pretrained: str | None = None
    """open_clip's tag for the weights, or a weight file; null for a folder."""
    quick_gelu: bool | None = None
    """Whether a weight file goes with OpenAI's QuickGELU (true) or with GELU (false); null where the file, a
    configuration or the model's name tells."""
    same_as: str | None = None
    """The CLIP that this one is, as NAME:TAG such as "ViT-L-14:openai", for detectors that go by name because
    their files keep no probes; null goes by `model` and `pretrained`."""

    def __post_init__(self) -> None:
        if self.same_as is not None and not all(self.same_as.partition(":")):
            raise ValueError(
                f"clip.same_as is {self.same_as!r}; write it as NAME:TAG, such as ViT-L-14:openai, with a "
                "model and a tag of open_clip"
            )
