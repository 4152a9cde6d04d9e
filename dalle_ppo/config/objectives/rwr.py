"""Settings of reward-weighted regression (Peters & Schaal 2007; arXiv 2305.13301)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.base.checks import positive
from dalle_ppo.config.own_weights import OWN_WEIGHTS, check_images_per_caption, check_own_weights

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """RWR: the likelihood of a round's images, weighted by softmax(score / temperature)."""

    temperature: float = 0.2
    """Temperature of the softmax, in units of the normalised scores (of the scores themselves with
    `credit.normalise_scores` false). Default 0.2 (https://github.com/jannerm/ddpo, where it acts on raw
    scores). Raise it when `effective_images` is only a few: the policy then copies them."""
    per_prompt: bool = False
    """Take the softmax over the images of each caption instead of the whole round, so that easy captions do
    not get all the weight. Needs several images per caption. Default false, as for JPEG sizes
    in https://github.com/jannerm/ddpo, which sets it for aesthetic scores. Use true when scores
    differ more between captions than within them."""
    sparse_percentile: float | None = None
    """Give the images at or above this percentile of the scores equal weight and the others none, instead of
    the softmax; the temperature is then not read. Default null; 90 is RWR_sparse in
    https://github.com/jannerm/ddpo. Use it when the scale of the scores means little."""

    def __post_init__(self) -> None:
        positive(self, "rwr", "temperature")
        if self.sparse_percentile is not None and not 0 <= self.sparse_percentile < 100:
            raise ValueError(
                f"rwr.sparse_percentile is {self.sparse_percentile}; it must be at least 0 and below 100, "
                "such as 90 for the best tenth, or null"
            )


# Five epochs are those of jannerm/ddpo.
DEFAULTS: dict[str, object] = OWN_WEIGHTS | {"update.epochs": 5}


def check(config: "Config") -> None:
    """Refuses settings that it does not read, and a softmax over single images."""
    check_own_weights(config)
    if config.objective_settings.per_prompt:
        check_images_per_caption(config, "rwr.per_prompt")
