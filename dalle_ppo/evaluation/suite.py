"""A suite: captions that test one ability each, and its scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.evaluation.intervals import clopper_pearson, sign_test

OVERALL = "overall"


@dataclass(frozen=True)
class Suite:
    """The captions of a suite and how images are judged.

    Args:
        name: as in `evaluation.suite`.
        captions: distinct captions, as many for each task; the tag is the task.
        passed: `(images uint8 [B, 3, H, W], captions) -> bool [B]`.
        ceiling: whether the judge passes a correct picture of each caption, a function that returns bool [N];
            no policy can be expected to score higher.
    """

    name: str
    captions: list[CaptionRecord]
    passed: Callable[[Tensor, Sequence[str]], np.ndarray]
    ceiling: Callable[[], np.ndarray]


def suite_scores(name: str, tasks: np.ndarray, passed: dict[str, np.ndarray]) -> dict:
    """Scores by task and overall.

    All tasks have the same number of captions, so the overall score is their mean. Its bounds are those of
    equally likely passes; tasks of different difficulty make the true spread smaller, not larger.

    Args:
        name: of the suite.
        tasks: task of each caption, [N].
        passed: 0 or 1 for each caption, [N], by side: "reference", "policy" and "ceiling".

    Returns:
        `name`, and in `tasks` for each task and `overall`: `num`, for each side `score` and its exact 95 %
        `interval`, the paired `difference` policy - reference and `sign_p`, the p-value of McNemar's exact
        test.

    Source: Hoeffding 1956, On the distribution of the number of successes in independent trials.
    """
    scores = {}
    for task in (*dict.fromkeys(tasks.tolist()), OVERALL):
        chosen = tasks == task if task != OVERALL else np.ones(len(tasks), dtype=bool)
        num = int(chosen.sum())
        sides = {side: np.asarray(flags, dtype=float)[chosen] for side, flags in passed.items()}
        scores[task] = {
            "num": num,
            **{
                side: {"score": float(flags.mean()), "interval": list(clopper_pearson(flags.sum(), num))}
                for side, flags in sides.items()
            },
            "difference": float(sides["policy"].mean() - sides["reference"].mean()),
            "sign_p": sign_test(sides["reference"], sides["policy"]),
        }
    return {"name": name, "tasks": scores}
