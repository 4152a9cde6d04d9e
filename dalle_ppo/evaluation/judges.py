"""Held-out judges: terms that no reward uses, beside the reward that was trained on, the proxy."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from dalle_ppo.evaluation.columns import Columns
from dalle_ppo.evaluation.intervals import deviation
from dalle_ppo.evaluation.statistics import compare
from dalle_ppo.rewards.base import Metadata, Reward, check_result

PREFIX = "judge/"
PROXY = "reward_mean"
LABELS = ("caption_id", "sample", "tag", "reward")


def judge_columns(
    judges: Mapping[str, Reward], pixels: Tensor, captions: list[str], metadata: Metadata
) -> dict[str, np.ndarray]:
    """What judges say about images.

    Args:
        judges: by label; each is a reward of one term with weight 1.
        pixels: float in 0..1, [B, 3, H, W].
        captions: B of them.
        metadata: of each caption.

    Returns:
        float32 [B] by name: `judge/LABEL` is the judge's value, `judge/LABEL/PART` a part that it reports.

    Raises:
        ValueError: a judge raised, or returned anything but one finite number per image.
    """
    columns = {}
    for label, judge in judges.items():
        try:
            result = check_result(judge(pixels.clone(), captions, metadata), len(captions), label)
        except ValueError as error:
            raise ValueError(f"evaluation.judges: {error}") from error
        name = label.partition("#")[0]
        parts = {part: values for part, values in result.parts.items() if part != name}
        columns[PREFIX + label] = result.total.cpu().numpy()
        for part, values in parts.items():
            columns[f"{PREFIX}{label}/{part.removeprefix(f'{name}/')}"] = values.cpu().numpy()
    return columns


def proxy_and_judges(
    sides: Mapping[str, Columns], curve: Sequence[Mapping], weights: Mapping[str, float]
) -> dict:
    """How far the reward and each judge moved from the reference, in one unit, so that they can be compared.

    Args:
        sides: rows of every side by name.
        curve: points over training, each with `iteration` and `side`; the first is the reference.
        weights: weight of each judge by label; its sign says whether high values are good.

    Returns:
        `better`: "up" or "down" by label; `curve`: for each point its `iteration` and `side`, and for
        "reward_mean" and each "judge/LABEL" its `shift` with 95 % bounds `low` and `high`: the paired
        difference from the reference in standard deviations of the reference's images, signed so that up is
        better. A measure whose images all score the same has no shift.
    """
    columns = {PROXY: "reward"} | {PREFIX + label: PREFIX + label for label in weights}
    signs = {PROXY: 1.0} | {PREFIX + label: np.sign(weight) for label, weight in weights.items()}
    rows = {
        point["side"]: {name: sides[point["side"]][name] for name in (*LABELS, *columns.values())}
        for point in curve
    }
    before = rows[curve[0]["side"]]
    units = {name: signs[name] * deviation(before[column]) for name, column in columns.items()}
    points = []
    for point in curve:
        changes = compare(before, rows[point["side"]])["overall"]
        shifts = {name: _shift(changes[name], units[name]) for name in columns}
        points.append({"iteration": point["iteration"], "side": point["side"], **shifts})
    better = {label: "up" if weight > 0 else "down" for label, weight in weights.items()}
    return {"better": better, "curve": points}


def _shift(change: Mapping, unit: float) -> dict[str, float | None]:
    """A difference and its bounds divided by a signed unit."""
    if not unit or change["difference"] is None:
        return dict.fromkeys(("shift", "low", "high"))
    # Adding 0 turns -0 into 0.
    shift, *ends = (
        None if change[name] is None else change[name] / unit + 0.0 for name in ("difference", "low", "high")
    )
    low, high = ends if unit > 0 else reversed(ends)
    return {"shift": shift, "low": low, "high": high}


def fallen_judges(judged: Mapping, margin: float = 0.1) -> list[str]:
    """Warnings about judges that fell while the reward rose.

    Args:
        judged: what `proxy_and_judges` returns.
        margin: how many standard deviations a judge may certainly fall.

    Returns:
        One sentence per judge; empty if the reward did not rise.
    """
    last = judged["curve"][-1]
    proxy = last[PROXY]
    if proxy["low"] is None or proxy["low"] <= 0:
        return []
    return [
        f"The reward rises by {proxy['shift']:.2f} standard deviations while judge {label} gets worse by "
        f"{-last[PREFIX + label]['shift']:.2f}: the policy may have learned to please the reward."
        for label in judged["better"]
        if last[PREFIX + label]["high"] is not None and last[PREFIX + label]["high"] < -margin
    ]
