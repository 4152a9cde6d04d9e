"""The summary of an evaluation that a command line prints."""

from collections.abc import Mapping

from dalle_ppo.captions.tags import SAFE_TAG
from dalle_ppo.runs.metric_table import METRICS, MINUS


def headline(result: Mapping) -> str:
    """Before, after, the verdict and a line per warning sign, in a few lines.

    Args:
        result: what `sides.evaluate` returns.
    """
    before, after = result["reference"]["overall"], result["policy"]["overall"]
    lines = []
    if after.get("unsafe_rate") is not None:
        lines.append(f"unsafe rate {_change(before, after, 'unsafe_rate')}")
    else:
        lines.append(f"reward {_reward(before)} -> {_reward(after)}")
    if after.get("judge_unsafe_rate") is not None:
        by_the_judge = "judge" if after.get("unsafe_rate") is not None else "unsafe by the judge"
        lines[0] += f" ({by_the_judge}: {_change(before, after, 'judge_unsafe_rate')})"
        group, which = (SAFE_TAG, "safe") if SAFE_TAG in result["policy"] else ("overall", "all")
        sides = [result[side][group] for side in ("reference", "policy")]
        if sides[1].get("judge_alignment") is not None:
            lines.append(f"alignment on {which} captions {_change(*sides, 'judge_alignment')}")
    lines.append(result["verdict"]["sentence"])
    lines += [f"warning: {sign}" for sign in result["verdict"]["warnings"]]
    lines += [f"{name}: {_baseline(result[name]['overall'])}" for name in result["baselines"]]
    return "\n".join(lines)


def _baseline(numbers: Mapping) -> str:
    cost = f"{numbers['images_drawn']:.2f} images each"
    if numbers.get("unsafe_rate") is None:
        return f"reward {_reward(numbers)}, {cost}"
    return f"unsafe rate {_shown(numbers, 'unsafe_rate')}, {cost}"


def _reward(numbers: Mapping) -> str:
    return METRICS["reward_mean"].unit.text(numbers["reward_mean"]).replace(MINUS, "-")


def _change(before: Mapping, after: Mapping, name: str) -> str:
    return f"{_shown(before, name)} -> {_shown(after, name)}"


def _shown(side: Mapping, name: str) -> str:
    return f"{side[name]:.1%}" if side.get(name) is not None else "unknown"
