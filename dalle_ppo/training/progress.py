"""What training carries from one iteration to the next, besides weights and optimisers."""

from dataclasses import asdict, dataclass, field

from dalle_ppo.rl.advantages import PromptStatistics, RunningMoments
from dalle_ppo.training.best import Best
from dalle_ppo.training.credit import CreditState


@dataclass
class Progress:
    """Counters and the state of credit.

    Args:
        iteration: iterations done.
        images: images drawn.
        credit: running statistics of scores, and the current weight of the KL.
        left_out: how many batches in a row, up to now, had an unusable reward.
        captions_truncated: how many captions so far were longer than the text encoder reads.
        best: the best checkpoint so far, with `keep_best`.
        term_moments: moments of each reward term's values so far, by label, with `reward.normalise` per_term.
    """

    iteration: int = 0
    images: int = 0
    credit: CreditState = field(default_factory=CreditState)
    left_out: int = 0
    captions_truncated: int = 0
    term_moments: dict[str, RunningMoments] = field(default_factory=dict)
    best: Best = field(default_factory=Best)

    def to_dict(self) -> dict:
        credit = self.credit
        return {
            "iteration": self.iteration,
            "images": self.images,
            "credit": {
                "score_moments": asdict(credit.score_moments),
                "kl_coef": credit.kl_coef,
                "prompt_statistics": credit.prompt_statistics.to_dict(),
            },
            "left_out": self.left_out,
            "captions_truncated": self.captions_truncated,
            "term_moments": {label: asdict(moments) for label, moments in self.term_moments.items()},
            "best": asdict(self.best),
        }

    @classmethod
    def from_dict(cls, saved: dict) -> "Progress":
        credit = CreditState(
            score_moments=RunningMoments(**saved["credit"]["score_moments"]),
            kl_coef=saved["credit"]["kl_coef"],
            prompt_statistics=PromptStatistics.from_dict(saved["credit"]["prompt_statistics"]),
        )
        # Checkpoints from before terms could be normalised have none.
        moments = {label: RunningMoments(**kept) for label, kept in saved.get("term_moments", {}).items()}
        best = saved.get("best", {})
        best = Best(**(best | {"recent": tuple(best.get("recent", ()))}))
        return cls(**(saved | {"credit": credit, "term_moments": moments, "best": best}))
