"""What training carries from one iteration to the next, beside weights and optimisers."""

from dataclasses import asdict, dataclass, field

from dalle_ppo.rl.advantages import PromptStatistics, RunningMoments


@dataclass
class Progress:
    """Counters, and the statistics that later iterations read.

    Args:
        iteration: iterations done.
        images: images drawn.
        score_moments: of all raw scores so far; scores are divided by their standard deviation.
        kl_coef: current weight of the KL.
        prompt_statistics: scores of each caption, for the "per_prompt" advantage.
        left_out: batches in a row, up to now, whose reward was not usable.
        captions_truncated: captions so far that were longer than the text encoder reads.
    """

    iteration: int = 0
    images: int = 0
    score_moments: RunningMoments = field(default_factory=RunningMoments)
    kl_coef: float = 0.0
    prompt_statistics: PromptStatistics = field(default_factory=PromptStatistics)
    left_out: int = 0
    captions_truncated: int = 0

    def to_dict(self) -> dict:
        return {
            "iteration": self.iteration,
            "images": self.images,
            "score_moments": asdict(self.score_moments),
            "kl_coef": self.kl_coef,
            "prompt_statistics": self.prompt_statistics.to_dict(),
            "left_out": self.left_out,
            "captions_truncated": self.captions_truncated,
        }

    @classmethod
    def from_dict(cls, saved: dict) -> "Progress":
        return cls(
            iteration=saved["iteration"],
            images=saved["images"],
            score_moments=RunningMoments(**saved["score_moments"]),
            kl_coef=saved["kl_coef"],
            prompt_statistics=PromptStatistics.from_dict(saved["prompt_statistics"]),
            # Absent from runs of before these were counted.
            left_out=saved.get("left_out", 0),
            captions_truncated=saved.get("captions_truncated", 0),
        )
