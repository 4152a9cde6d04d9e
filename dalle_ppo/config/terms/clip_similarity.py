"""Settings of the reward term `clip_similarity`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """The similarity of image and caption in a CLIP's space; by default the cosine, in the run's CLIP."""

    parts: ClassVar = ("clip_similarity",)

    model: str | None = None
    """A CLIP of the term's own, for preference models such as PickScore and HPSv2: a folder in open_clip's or
    transformers' layout, or open_clip's name for a model. null is the run's CLIP, `clip.model`."""
    pretrained: str | None = None
    """Weights of `model`: open_clip's tag or a weight file; null for a folder."""
    quick_gelu: bool | None = None
    """As `clip.quick_gelu`, for a weight file of `model`."""
    logits: bool = False
    """Whether the cosine is divided by the CLIP's temperature, and its bias added if it has one, as in its
    training and in PickScore."""
    transform: Literal["none", "relu", "sigmoid"] = "none"
    """What is done to the similarity last: "relu" makes negative ones 0, as in CLIPScore; "sigmoid", with
    `logits`, gives SigLIP's probability that image and caption belong together."""

    def __post_init__(self) -> None:
        given = [name for name in ("pretrained", "quick_gelu") if getattr(self, name) is not None]
        if self.model is None and given:
            raise ValueError(
                f"{given[0]} of clip_similarity is {getattr(self, given[0])}, but model is not set; give the "
                "model that it belongs to, or set it for the run's CLIP, in the section clip"
            )
        if self.model == "builtin":
            raise ValueError(
                "model of clip_similarity is builtin, which is a run's CLIP only; leave it out, and set "
                "clip.model to builtin"
            )

    @property
    def reads_clip(self) -> bool:
        """Whether it reads the run's CLIP."""
        return self.model is None

    @property
    def own_clip(self) -> ClipConfig | None:
        """The settings of its own CLIP; None if it reads the run's."""
        return None if self.model is None else ClipConfig(self.model, self.pretrained, self.quick_gelu)
