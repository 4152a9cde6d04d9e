"""Settings of evaluation."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from dalle_ppo.base.checks import at_least_one, not_empty, not_negative
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.judges import read_judges
from dalle_ppo.config.term import TermConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """Compares the policy with the reference on held-out captions, with the same noise."""

    at_end: bool = True
    """Evaluate when training ends."""
    num_captions: int = 2000
    """Held-out captions to draw."""
    shares: dict[str, float] | None = None
    """Share of each tag among them, as in `captions.shares`; null uses the mix of training. If you train on
    more suspicious captions than there really are, give the real mix here."""
    samples_per_caption: int = 2
    """Images per caption."""
    batch_size: int = 200
    """Images drawn at a time; an interrupted evaluation continues with the next batch."""
    seed: int = 12345
    """Seed for captions and noise, separate from the seed of training."""
    heldout_clip: ClipConfig | None = None
    """A second CLIP that no reward sees, as {model, pretrained} or more of the settings of `clip`; null is
    none. Where there is no judge, its similarity tells a real gain from a policy that has fooled the reward's
    CLIP."""
    heldout_detector: str | None = None
    """A detector that reads embeddings of `heldout_clip`: laion-l14, laion-b32, or a file written by `python
    -m dalle_ppo.detector` or `converters/keras_nsfw_to_torch.py`; null is none."""
    judges: list[str | dict[str, Any]] = field(default_factory=list)
    """Reward terms that measure images and are never trained on, each a name or an entry as in `reward.terms`
    without only_if. A negative weight says that low values are good. The report shows the reward, the proxy,
    beside them."""
    suite: Literal["iconworld"] | None = None
    """A suite of captions that test one ability each: "iconworld" for the built-in world's, which its judge
    scores; null is none."""

    def __post_init__(self) -> None:
        at_least_one(self, "evaluation", "num_captions", "samples_per_caption", "batch_size")
        not_empty(self, "evaluation", "shares")
        not_negative(self, "evaluation", "seed")
        if self.suite not in (None, "iconworld"):
            raise ValueError(f"evaluation.suite is {self.suite}; the suites are iconworld, or null for none")
        if self.heldout_detector is not None and self.heldout_clip is None:
            raise ValueError(
                f"evaluation.heldout_detector is {self.heldout_detector}; it reads embeddings of "
                "evaluation.heldout_clip, so set that too"
            )
        # Spelled out, so that the settings a run saves do not depend on later defaults.
        spelled_out = [judge.to_mapping() for judge in read_judges(self.judges)]
        object.__setattr__(self, "judges", spelled_out)

    @cached_property
    def parsed_judges(self) -> list[TermConfig]:
        """The judges as checked terms."""
        return read_judges(self.judges)
